"""`mllm corpora import`: plan, stages on datatrove's executors, index and report.

The same command started again goes on where it was stopped, with any number of tasks and workers.
"""

import contextlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from corpora.index import build_index
from corpora.pipeline.dedup import Stage
from corpora.pipeline.executors import ExecutorOptions, keep_stderr_clean, make_executor
from corpora.pipeline.plan import (
    REPORT,
    ImportOptions,
    Plan,
    finished_report,
    formats_of,
    make_plan,
)
from corpora.pipeline.readers.tars import Img2dataset
from corpora.pipeline.report import check_floor, downloads_report, import_report, write_report
from corpora.pipeline.task import EachRank, failure
from corpora.pipeline.watch import run_watched
from corpora.reader import Corpus
from mllm.errors import UserError

WORDS = {"read": "reading", "write": "writing shards"}  # of stages, for the progress bar


def import_corpus(options: ImportOptions, executor: ExecutorOptions) -> dict[str, Any]:
    """Imports, and returns the report.

    Raises:
        UserError: The input cannot be read, or fewer than `min_kept` of its records were kept; then
            the report is written and the index is not.
    """
    keep_stderr_clean()
    source_format = formats_of(options)
    if isinstance(source_format, Img2dataset) and options.is_plain and not options.rewrite:
        return _index_in_place(options)
    plan = make_plan(options, source_format)
    if report := finished_report(options, plan.settings_id):
        shutil.rmtree(plan.places.work, ignore_errors=True)
        return report | {"stood_whole": True}
    plan.write()
    if executor.kind == "slurm":
        return _submit(plan, executor)
    if executor.kind == "ray":
        _connect_ray(executor)
    started = time.time()
    for stage in plan.stages:
        _run_stage(plan, stage, executor)
    return finish(plan, started)


def _run_stage(plan: Plan, stage: Stage, options: ExecutorOptions) -> None:
    stage_dir = plan.places.stage(stage.name)
    num_ranks = _num_ranks(plan, stage)
    if len(list((stage_dir / "done").glob("*.json"))) == num_ranks:
        return
    executor = make_executor(options, stage.name, _task(plan, stage), num_ranks, plan.places.logs)
    weights = plan.unit_bytes if stage.num_ranks is None else [1] * num_ranks
    run_watched(executor, WORDS.get(stage.name, stage.name), stage_dir, weights)
    missing = num_ranks - len(list((stage_dir / "done").glob("*.json")))
    if missing:  # Ray's executor only logs what failed
        failed = failure(stage_dir) or {}
        message = failed.get("error", f"{missing} of {num_ranks} parts are not done")
        if failed.get("is_user"):
            raise UserError(message)
        raise RuntimeError(f"stage {stage.name}: {message}; logs in {plan.places.logs}")


def _task(plan: Plan, stage: Stage) -> list[PipelineStep]:
    return [EachRank(stage.steps, _num_ranks(plan, stage), plan.places.stage(stage.name))]


def _num_ranks(plan: Plan, stage: Stage) -> int:
    return len(plan.unit_bytes) if stage.num_ranks is None else stage.num_ranks


def finish(plan: Plan, started: float) -> dict[str, Any]:
    """Report, floor, index; then the work folder goes."""
    out = plan.options.out
    report = import_report(plan, time.time() - started)
    write_report(out, report)
    check_floor(report, plan.options.min_kept, out)
    for stray in out.glob("*.tar.tmp-*"):  # of tasks that were killed
        stray.unlink()
    build_index(out)
    report["fingerprint"] = Corpus(out).fingerprint
    write_report(out, report)
    shutil.rmtree(plan.places.work)
    return report


class Finish(PipelineStep):
    """`finish` as the last SLURM job."""

    type = "TASK"
    name = "finish"

    def __init__(self, plan: Plan, started: float) -> None:
        super().__init__()
        self.plan, self.started = plan, started

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        finish(self.plan, self.started)


def _submit(plan: Plan, options: ExecutorOptions) -> dict[str, Any]:
    """Hands every stage to sbatch, each waiting for the one before."""
    if shutil.which("sbatch") is None:
        raise UserError("--executor slurm: no `sbatch` here; run this on a SLURM login node")
    last: PipelineExecutor | None = None
    for stage in plan.stages:
        num_ranks = _num_ranks(plan, stage)
        last = make_executor(
            options, stage.name, _task(plan, stage), num_ranks, plan.places.logs, last
        )
    end: list[PipelineStep] = [Finish(plan, time.time())]
    last = make_executor(options, "finish", end, 1, plan.places.logs, last)
    last.run()
    return {
        "submitted": True,
        "job": last.job_id,  # type: ignore[attr-defined]
        "out": str(plan.options.out),
        "units": len(plan.unit_bytes),
    }


def _connect_ray(options: ExecutorOptions) -> None:
    try:
        import ray
    except ImportError:
        raise UserError('--executor ray: pip install "mllm[cluster]"') from None
    if ray.is_initialized():
        return
    local: dict[str, Any] = (
        {} if options.ray_address else {"num_cpus": options.workers, "include_dashboard": False}
    )
    ray.init(options.ray_address, log_to_driver=False, logging_level=logging.ERROR, **local)


def _index_in_place(options: ImportOptions) -> dict[str, Any]:
    """Foreign tars as they are: their index goes to OUT, beside a report of their downloads."""
    if len(options.sources) > 1:
        raise UserError("tars are indexed in place, a folder at a time; give one SOURCE")
    source = options.sources[0]
    _check_index_place(options.out, source)
    started = time.time()
    report = downloads_report(options, source)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    write_report(options.out, report)
    check_floor(report, options.min_kept, options.out)
    build_index(source, options.out)
    corpus = Corpus(source, options.out)
    report["fingerprint"] = corpus.fingerprint
    report["kept_samples"] = len(corpus)
    report["images"] = int(corpus.num_images.sum(dtype="int64"))
    report["text_bytes"] = int(corpus.text_bytes.sum(dtype="int64"))
    report["seconds"] = round(time.time() - started, 1)
    write_report(options.out, report)
    return report


def _check_index_place(out: Path, source: Path) -> None:
    """UserError unless OUT is new, holds the tars themselves, or an earlier index of them."""
    if out.resolve() == source.resolve():
        return
    known = str(source)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        known = json.loads((out / REPORT).read_bytes()).get("in_place")
    if known != str(source) or any(out.glob("*.tar")):
        raise UserError(f"{out}: holds another corpus or its index already; give a new folder")

"""All cells of a command, on one process, several, or several ranks; and scores again from rows."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from evals.api import Separator, Task
from evals.command import controls, seeds, shot_labels, task_options
from evals.data import read_data_paths
from evals.rows import Share
from evals.shots import DoesNotFit, Selection, read_fixed
from evals.table import language_averages
from evals.tasks import TASKS, CellSpec, data_names, make_task, suite_cells
from evals.tasks.sources import MissingSet
from mllm import dist
from mllm.errors import UserError
from mllm.files import write_json

WORKER = "MLLM_EVAL_WORKER"  # RANK/SIZE of a process that only asks


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Runs every cell once, writing results.json after each; gives back what it holds.

    `is_complete` and `time_seconds` are of this command; cells of earlier ones on the same model
    stay. None on a process that only asks.
    """
    specs, tasks, left_out = cells_of(args)  # before torch, so that missing data is said at once
    if args.rescore:
        from evals.rescore import rescore

        results: dict[str, Any] | None = rescore(args.out, tasks)
    else:
        share, is_measured = find_share()
        results = run_cells(args, specs, tasks, left_out, share, is_measured)
    if results is not None and args.has_report:
        from evals.page import write_page

        found = tasks_of(args, results["cells"], tasks)
        write_page(args.out / "report.html", args.out, results, found)
    return results


def run_cells(
    args: argparse.Namespace,
    specs: list[CellSpec],
    tasks: dict[str, Task],
    left_out: list[str],
    share: Share,
    is_measured: bool,
) -> dict[str, Any] | None:
    """Asks `args.model` and writes `args.out/results.json`, as `evaluate` says."""
    started = time.perf_counter()
    if args.workers > 1 and WORKER not in os.environ:
        # They leave all rows on disk; what follows measures them.
        _run_workers(args.workers, args.argv)
    from evals.exported import ExportedModel
    from evals.run import CellOptions, run_cell, versions

    model = ExportedModel(args.model)
    left_out = list(left_out)
    results: dict[str, Any] = {
        "model": str(args.model),
        "model_fingerprint": model.fingerprint,
        "data": args.data,
        "versions": versions(),
        "left_out": left_out,
        "time_seconds": 0.0,
        "is_complete": False,
        "cells": [],
    }
    cells = earlier_cells(args.out / "results.json", model.fingerprint)
    for spec in specs:
        options = CellOptions(
            num_shots=spec.num_shots,
            is_textual=spec.is_textual,
            seeds=seeds(args),
            limit=None if args.full else args.limit or spec.limit,
            separator=_separator(args, tasks[spec.task], model),
            selection=selection_of(args),
            batch_size=args.batch_size,
            controls=controls(args),
            share=share,
            is_measured=is_measured,
        )
        try:
            cell = run_cell(tasks[spec.task], model, options, args.out)
        except DoesNotFit as error:
            if spec.task in args.suites:
                raise
            left_out.append(f"{spec.task}: {error}")
            cell = None
        if not is_measured:
            continue
        if cell is not None:
            cells[_cell_key(cell)] = cell
        results["cells"] = list(cells.values())
        results["language_average"] = language_averages(results["cells"])
        results["is_complete"] = spec == specs[-1]
        results["time_seconds"] = round(time.perf_counter() - started, 1)
        write_json(args.out / "results.json", results)
    return results if is_measured else None


def cells_of(args: argparse.Namespace) -> tuple[list[CellSpec], dict[str, Task], list[str]]:
    """The cells of the command, their tasks, and what a suite leaves out because data is missing.

    A task that was asked for by name must have its data.
    """
    paths = read_data_paths(args.data, data_names())
    options, labels = task_options(args), shot_labels(args)
    specs = [spec for name in args.suites for spec in suite_cells(name, labels)]
    specs = list(dict.fromkeys(specs))
    if not specs:
        raise UserError(f"{' '.join(args.suites)}: no cells; see `mllm eval list`")
    tasks: dict[str, Task] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(spec.task for spec in specs):
        try:
            tasks[name] = make_task(name, paths, options)
        except UserError as error:
            is_given = paths.is_given(name, TASKS[name].data)
            if is_given and isinstance(error, MissingSet):
                is_given = name in paths.given  # a folder for all tasks may lack the sets of some
            if name in args.suites or is_given:
                raise
            left_out[name] = str(error)
    if not tasks:
        raise UserError(next(iter(left_out.values())))
    return [spec for spec in specs if spec.task in tasks], tasks, list(left_out.values())


def tasks_of(
    args: argparse.Namespace, cells: list[dict[str, Any]], tasks: dict[str, Task]
) -> dict[tuple[str, str], Task]:
    """By suite and split: a command's tasks, and those of earlier cells whose data is there."""
    paths = read_data_paths(args.data, data_names())
    found = {(task.name, task.split): task for task in tasks.values()}
    for cell in cells:
        name, split = cell["suite"], cell["split"]
        if (name, split) in found or name not in TASKS:
            continue
        try:
            task = make_task(name, paths, replace(task_options(args), split=split))
        except UserError:
            continue
        found[name, task.split] = task
    return found


def selection_of(args: argparse.Namespace) -> Selection:
    fixed = read_fixed(args.shots_file) if args.shots_file else ()
    return Selection(args.select, fixed, args.support)


def _separator(args: argparse.Namespace, task: Task, model: Any) -> Separator:
    """`</s>` between shots is familiar from joined rows only: without any, none is used."""
    separator: Separator = args.separator or task.separator
    if separator == "eos" and model.has_joined_rows is False:
        _warn_once(
            "mllm: warning: no row of this model's training joined documents by </s>, so shots "
            "stand without a separator; --separator newline is another choice"
        )
        return "none"
    return separator


@lru_cache
def _warn_once(line: str) -> None:
    print(line, file=sys.stderr)


def _cell_key(cell: dict[str, Any]) -> tuple[str, str, str]:
    return cell["suite"], cell["split"], cell["shots"]


def earlier_cells(path: Path, model_fingerprint: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What an earlier command on the same model left in the same --out."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable JSON ({error}); remove it") from error
    if results.get("model_fingerprint") != model_fingerprint:
        return {}
    return {_cell_key(cell): cell for cell in results["cells"]}


# ----------------------------------------------------------------------------------------------
# Several processes


def find_share() -> tuple[Share, bool]:
    """This process's part of every cell, and whether it measures.

    Ranks of torchrun, deepspeed and srun come as RANK and WORLD_SIZE; workers of `--workers` in a
    variable of ours, without a process group: they meet in the rows on disk.
    """
    if WORKER in os.environ:
        rank, size = (int(part) for part in os.environ[WORKER].split("/"))
        return Share(rank, size), False
    if dist.world_size() == 1:
        return Share(), True
    import torch

    dist.set_up_environment()
    # Nothing but barriers goes through it; the first to come may wait long for the last.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    return Share(dist.rank(), dist.world_size()), dist.rank() == 0


def _run_workers(size: int, argv: list[str]) -> None:
    """Runs this command in `size` processes that only ask, and waits.

    Raises:
        UserError: A worker failed; its own line was printed.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // size))
    workers = []
    for rank in range(size):
        environment = os.environ | {WORKER: f"{rank}/{size}", "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-m", "mllm.cli", "eval", *argv]
        # A worker has nothing to say on stdout; its bar would fight with those of the others.
        errors = None if rank == 0 else subprocess.PIPE
        workers.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        )
    try:
        outputs = [worker.communicate()[1] for worker in workers]
    except BaseException:
        for worker in workers:
            worker.terminate()
        raise
    for rank, (worker, output) in enumerate(zip(workers, outputs, strict=True)):
        if worker.returncode != 0:
            lines = (output or b"").decode(errors="replace").strip().split("\n")
            reason = lines[-1].removeprefix("mllm: ") if output else "see above"
            raise UserError(
                f"--workers {size}: worker {rank} ended with {worker.returncode}: {reason}"
            )

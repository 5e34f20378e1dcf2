"""All cells of a command, on one process, several, or several ranks; and scores again from rows."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evals.api import Task
from evals.command import controls, seeds, shot_labels, task_options
from evals.data import read_data_paths
from evals.rows import Share
from evals.shots import Selection, read_fixed
from evals.tasks import TASKS, CellSpec, make_task, suite_cells
from mllm import dist
from mllm.errors import UserError
from mllm.files import write_json

WORKER = "MLLM_EVAL_WORKER"  # RANK/SIZE of a process that only asks


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Runs every cell once, writing results.json after each; gives back what it holds.

    `is_complete` and `time_seconds` are of this command; cells of earlier ones on the same model
    stay. None on a process that only asks.
    """
    started = time.perf_counter()
    specs, tasks, left_out = _cells(args)  # before torch, so that a missing corpus is said at once
    if args.rescore:
        from evals.rescore import rescore

        return rescore(args.out, tasks)
    if args.workers > 1 and WORKER not in os.environ:
        _run_workers(
            args.workers, args.argv
        )  # they leave all rows on disk; what follows measures them
    share, is_measured = _share()
    from evals.exported import ExportedModel
    from evals.run import CellOptions, run_cell, versions

    model = ExportedModel(args.model)
    separator = _separator(args, model)
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
            separator=separator,
            selection=_selection(args),
            batch_size=args.batch_size,
            controls=controls(args),
            share=share,
            is_measured=is_measured,
        )
        cell = run_cell(tasks[spec.task], model, options, args.out)
        if cell is None:
            continue
        cells[_cell_key(cell)] = cell
        results["cells"] = list(cells.values())
        results["is_complete"] = spec == specs[-1]
        results["time_seconds"] = round(time.perf_counter() - started, 1)
        write_json(args.out / "results.json", results)
    return results if is_measured else None


def _cells(args: argparse.Namespace) -> tuple[list[CellSpec], dict[str, Task], list[str]]:
    """The cells of the command, their tasks, and what a suite leaves out because data is missing.

    A task that was asked for by name must have its data.
    """
    paths = read_data_paths(args.data, {*TASKS, *(info.data for info in TASKS.values())})
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
            if name in args.suites or paths.is_given(name, TASKS[name].data):
                raise
            left_out[name] = str(error)
    if not tasks:
        raise UserError(next(iter(left_out.values())))
    return [spec for spec in specs if spec.task in tasks], tasks, list(left_out.values())


def _selection(args: argparse.Namespace) -> Selection:
    fixed = read_fixed(args.shots_file) if args.shots_file else ()
    return Selection(args.select, fixed, args.support)


def _separator(args: argparse.Namespace, model: Any) -> Any:
    """`</s>` between shots is familiar from joined rows only: without any, none is used."""
    if args.separator == "eos" and model.has_joined_rows is False:
        print(
            "mllm: warning: no row of this model's training joined documents by </s>, so shots "
            "stand without a separator; --separator newline is another choice",
            file=sys.stderr,
        )
        return "none"
    return args.separator


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


def _share() -> tuple[Share, bool]:
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
    torch.distributed.init_process_group("gloo")  # nothing but barriers goes through it
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

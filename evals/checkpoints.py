"""`--checkpoints RUN`: the cells on every checkpoint of a run, as scores over training steps.

    OUT/
      checkpoints.json               the cells of each step
      checkpoints/step-00000400/     rows and results.json of a step, as any evaluation writes them
      checkpoints/step-00000400/export   only while the step is asked, or for good with --keep

A step that checkpoints.json has, of the same checkpoint and asked the same way, is not asked again.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.api import Task
from evals.evaluate import cells_of, find_share, run_cells, selection_of, tasks_of
from evals.tasks import CellSpec
from mllm import dist
from mllm.checkpoint_files import MANIFEST, checkpoints, read_manifest
from mllm.command import progress
from mllm.errors import UserError
from mllm.export import export
from mllm.files import fingerprint, write_json

Step = dict[str, Any]  # {"step", "checkpoint", "asked", "results"}


def evaluate_checkpoints(args: argparse.Namespace) -> dict[str, Any] | None:
    """Asks every checkpoint and gives back what checkpoints.json holds; None where this process
    only asks.

    Raises:
        UserError: the run has no checkpoint, or its rows in `args.out` are of other settings.
    """
    specs, tasks, left_out = cells_of(args)
    found = whole_checkpoints(args.checkpoints)
    share, is_measured = find_share()
    path = args.out / "checkpoints.json"
    asked = _asked(args, specs, tasks)
    steps = {step["step"]: step for step in read_steps(path) if step["asked"] == asked}
    dist.barrier()  # all ranks have read the file before it changes
    for checkpoint, mark in progress(found.items(), "checkpoints", total=len(found)):
        number = int(checkpoint.name.rpartition("-")[2])
        if number in steps and steps[number]["checkpoint"] == mark:
            continue
        results = _ask_one(args, checkpoint, specs, tasks, left_out, share, is_measured)
        if results is None:
            continue
        steps[number] = {"step": number, "checkpoint": mark, "asked": asked, "results": results}
        write_json(path, _content(args, steps))
    if not is_measured:
        return None
    content = _content(args, steps)
    if args.has_report:
        _write_page(args, content["steps"], tasks)
    return content


def whole_checkpoints(run_dir: Path) -> dict[Path, str]:
    """Finished checkpoints of a run, oldest first, each with a fingerprint of its files."""
    found = {}
    for folder in checkpoints(run_dir / "checkpoints"):
        if (folder / MANIFEST).is_file():
            manifest = read_manifest((folder / MANIFEST).read_bytes())
            found[folder] = fingerprint(manifest)
    if not found:
        raise UserError(f"--checkpoints {run_dir}: no checkpoint there; name a run folder")
    return found


def read_steps(path: Path) -> list[Step]:
    """
    Raises:
        UserError: the file is not JSON.
    """
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable as steps ({error}); remove it") from None


def _asked(args: argparse.Namespace, specs: list[CellSpec], tasks: dict[str, Task]) -> str:
    """Over all that decides the answers of a checkpoint, besides the checkpoint."""
    from evals.run import versions

    decisive = ("full", "limit", "shots", "seeds", "separator", "batch_size", "controls")
    return fingerprint(
        {
            **{name: getattr(args, name) for name in decisive},
            "cells": [asdict(spec) for spec in specs],
            "selection": selection_of(args).settings(),
            "tasks": {name: [task.settings, task.data_fingerprint] for name, task in tasks.items()},
            "versions": versions(),
        }
    )


def _ask_one(
    args: argparse.Namespace,
    checkpoint: Path,
    specs: list[CellSpec],
    tasks: dict[str, Task],
    left_out: list[str],
    share: Any,
    is_measured: bool,
) -> dict[str, Any] | None:
    out = args.out / "checkpoints" / checkpoint.name
    model = out / "export"
    if dist.rank() == 0:
        export(checkpoint, model)
    dist.barrier()
    own = {"model": model, "out": out, "checkpoints": None}
    argv = [*without(args.argv, "--checkpoints", "--out"), "--model", str(model), "--out", str(out)]
    step_args = argparse.Namespace(**vars(args) | own | {"argv": argv})
    try:
        results = run_cells(step_args, specs, tasks, left_out, share, is_measured)
        dist.barrier()
    finally:
        if dist.rank() == 0 and not args.keep:
            shutil.rmtree(model, ignore_errors=True)
    return results


def without(argv: list[str], *flags: str) -> list[str]:
    """`argv` without these flags and their values."""
    kept, is_value = [], False
    for part in argv:
        if is_value:
            is_value = False
        elif part in flags:
            is_value = True
        elif not part.startswith(tuple(f"{flag}=" for flag in flags)):
            kept.append(part)
    return [part for part in kept if part != "--keep"]


def _content(args: argparse.Namespace, steps: dict[int, Step]) -> dict[str, Any]:
    return {"run": str(args.checkpoints), "steps": [steps[number] for number in sorted(steps)]}


def cells_by_step(steps: list[Step]) -> list[tuple[int, list[dict[str, Any]]]]:
    """What the curves are drawn from."""
    return [(step["step"], step["results"]["cells"]) for step in steps]


def _write_page(args: argparse.Namespace, steps: list[Step], tasks: dict[str, Task]) -> None:
    """Curves over all steps; scores and examples of the last."""
    from evals.page import write_page

    last = steps[-1]
    results = last["results"]
    rows_dir = args.out / "checkpoints" / f"step-{last['step']:08d}"
    found = tasks_of(args, results["cells"], tasks)
    write_page(args.out / "report.html", rows_dir, results, found, cells_by_step(steps))

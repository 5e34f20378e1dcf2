"""`mllm eval`: suites or tasks on an export, scores beside what chance and baselines say."""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from evals.api import SEPARATORS
from evals.tasks import SPLIT_NAMES, SUITES, TASKS, suite_cells
from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError
from mllm.files import write_json

DEFAULT_DATA = "runs/demo/corpus"
NO_SHOTS = ("zeroshot", "text_loss")

EXAMPLES = """examples:
  mllm eval demo --model runs/demo/export --out runs/demo/eval
  mllm eval zeroshot --model runs/demo/export --split development --out /tmp/tuning
  mllm eval naming --model runs/demo/export --shots 0,2,4 --seeds 0,1,2 --limit 100 --out /tmp/k
  mllm eval list

Rows are appended as they are done; the same command continues in the same --out."""


def main(argv: list[str]) -> int:
    if argv and argv[0] == "score":
        from evals.score_command import main as score

        return score(argv[1:])
    parser = Parser(
        prog="mllm eval",
        description="Zero-shot and few-shot evaluation with baselines and blind controls.",
        epilog=EXAMPLES,
    )
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="suites, tasks, or `list`")
    parser.add_argument("--model", type=Path, help="export folder")
    parser.add_argument("--data", type=Path, default=Path(DEFAULT_DATA), help="demo corpus")
    parser.add_argument("--out", type=Path, help="folder of samples.jsonl and results.json")
    parser.add_argument(
        "--split",
        choices=SPLIT_NAMES,
        default="final",
        help="naming and captions: tune on `development`, report `final` (default)",
    )
    parser.add_argument("--shots", help="numbers of exemplars, such as 0,2,4")
    parser.add_argument("--seeds", default="0,1,2", help="of the exemplars (default 0,1,2)")
    parser.add_argument("--separator", choices=SEPARATORS, default="eos", help="between exemplars")
    parser.add_argument("--batch-size", type=int, default=32, help="queries a batch (default 32)")
    parser.add_argument("--limit", type=int, help="at most this many queries a cell, by id hash")
    parser.add_argument("--full", action="store_true", help="all queries")
    parser.add_argument("--no-blind", action="store_true", help="leave the blind controls out")
    parser.add_argument("--json", action="store_true", help="print results.json on stdout")
    args = parser.parse_args(argv)
    if args.suites == ["list"]:
        return _list(args)
    _check(args)
    if args.json:
        with stdout_is_json():
            results = evaluate(args)
        print_json(results)
        return 0
    from evals.table import print_scores

    results = evaluate(args)
    print_scores(results["cells"])
    print(f"{args.out / 'results.json'}: {results['time_seconds']:.0f} s")
    return 0


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Runs every cell once, writing results.json after each; gives back what it holds.

    `is_complete` and `time_seconds` are of this command; cells of earlier ones on the same model
    stay.
    """
    started = time.perf_counter()
    shots = _numbers("--shots", args.shots) if args.shots is not None else None
    specs = [spec for name in args.suites for spec in suite_cells(name, shots)]
    specs = list(dict.fromkeys(specs))
    # Opened before torch is, so that a missing corpus is said at once.
    tasks = {spec.task: TASKS[spec.task][0](args.data, args.split) for spec in specs}
    from evals.exported import ExportedModel
    from evals.run import CellOptions, run_cell, versions

    model = ExportedModel(args.model)
    results: dict[str, Any] = {
        "model": str(args.model),
        "model_fingerprint": model.fingerprint,
        "data": str(args.data),
        "versions": versions(),
        "time_seconds": 0.0,
        "is_complete": False,
        "cells": [],
    }
    cells = _earlier_cells(args.out / "results.json", model.fingerprint)
    for spec in specs:
        options = CellOptions(
            num_shots=spec.num_shots,
            seeds=_numbers("--seeds", args.seeds),
            limit=None if args.full else args.limit or spec.limit,
            separator=args.separator,
            batch_size=args.batch_size,
            is_blind=not args.no_blind,
        )
        cell = run_cell(tasks[spec.task], model, options, args.out)
        cells[_cell_key(cell)] = cell
        results["cells"] = list(cells.values())
        results["is_complete"] = spec == specs[-1]
        results["time_seconds"] = round(time.perf_counter() - started, 1)
        write_json(args.out / "results.json", results)
    return results


def _cell_key(cell: dict[str, Any]) -> tuple[str, str, int]:
    return cell["suite"], cell["split"], cell["num_shots"]


def _earlier_cells(
    path: Path, model_fingerprint: str
) -> dict[tuple[str, str, int], dict[str, Any]]:
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


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot be meant before anything is loaded or written."""
    for name in args.suites:
        if name not in SUITES and name not in TASKS:
            known = ", ".join([*SUITES, *TASKS])
            raise UserError(f"no suite or task {name!r}; one of {known}; see `mllm eval list`")
        if name in NO_SHOTS and args.shots is not None and args.shots != "0":
            raise UserError(f"--shots {args.shots}: {name} is run without shots; leave --shots out")
    for flag in ("model", "out"):
        if getattr(args, flag) is None:
            raise UserError(f"--{flag} is missing; see `mllm eval --help` for examples")
    if not args.model.is_dir():
        raise UserError(f"--model {args.model}: no such folder; write one with `mllm export`")
    for flag, value in (("--limit", args.limit), ("--batch-size", args.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}: must be at least 1")
    if args.full and args.limit is not None:
        raise UserError("--full and --limit exclude each other; drop one")
    if args.shots is not None:
        _numbers("--shots", args.shots)
    _numbers("--seeds", args.seeds)


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"{flag} {text}: expected numbers divided by commas, such as 0,2,4")
    numbers = tuple(int(part) for part in text.split(","))
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{flag} {text}: names a number twice")
    return numbers


def _list(args: argparse.Namespace) -> int:
    """What there is, and whether its data is."""
    rows = [{"name": name, "about": about, "state": ""} for name, about in SUITES.items()]
    for name, (make, about) in TASKS.items():
        try:
            make(args.data, args.split)
            state = "ready"
        except UserError as error:
            state = f"missing: {str(error).split(':')[0]}"
        rows.append({"name": name, "about": about, "state": state})
    if args.json:
        print_json({"suites": rows})
        return 0
    for row in rows:
        print(f"{row['name']:10} {row['about']}" + (f" [{row['state']}]" if row["state"] else ""))
    return 0

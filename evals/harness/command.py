"""`mllm eval --harness lm_eval TASKS`: lm-evaluation-harness' tasks and metrics on an export."""

import argparse
import importlib.metadata
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError
from mllm.files import write_json

HARNESSES = ("lm_eval", "lmms_eval")
VERSIONED = ("mllm", "lm_eval", "datasets", "torch", "transformers")

EXAMPLES = """examples:
  mllm eval --harness lm_eval piqa_local boolq_local --tasks-dir tasks \\
      --model runs/demo/export --out runs/demo/lm_eval
  mllm eval --harness lm_eval hellaswag --shots 4 --limit 100 --model runs/demo/export --out /tmp/hs

With --tasks-dir nothing is downloaded: its YAML files say `dataset_path: json` and name their files
in `dataset_kwargs.data_files`, relative to the folder where the command runs. Without it the tasks
are those that lm_eval brings, whose data comes from the Hugging Face hub."""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm eval",
        description="Runs another evaluation harness on an export, with its own tasks and metrics.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--harness", choices=HARNESSES, required=True)
    parser.add_argument("tasks", nargs="*", metavar="TASKS", help="names of tasks, groups, tags")
    parser.add_argument("--model", type=Path, help="export folder")
    parser.add_argument("--tasks-dir", type=Path, help="folder of task YAML files; no network")
    parser.add_argument("--limit", type=int, help="the first queries of each task")
    parser.add_argument("--shots", type=int, help="few-shot examples (default: as the task says)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows a batch (default 8)")
    parser.add_argument("--out", type=Path, help="folder of results.json and samples_TASK.jsonl")
    parser.add_argument("--json", action="store_true", help="print results.json on stdout")
    args = parser.parse_args(argv)
    _check(args)
    if args.json:
        with stdout_is_json():
            results = evaluate(args)
        print_json(results)
        return 0
    results = evaluate(args)
    from lm_eval.utils import make_table

    print(make_table(results))
    if "groups" in results:
        print(make_table(results, "groups"))
    for note in results["mllm"]["notes"]:
        print(note)
    print(f"{args.out / 'results.json'}: {results['mllm']['time_seconds']:.0f} s")
    return 0


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the tasks and writes results.json (lm_eval's own, and ours under `mllm`) and samples."""
    started = time.perf_counter()
    if args.tasks_dir is not None:  # before anything imports the libraries that read these
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        import lm_eval
    except ModuleNotFoundError as error:
        raise UserError(
            f"--harness lm_eval: {error.name} is not installed; pip install -e '.[eval]'"
        ) from error
    from lm_eval.utils import handle_non_serializable

    from evals.harness.lm_harness import CheckedTaskManager, MllmLM

    tasks = [name for names in args.tasks for name in names.split(",")]
    manager = CheckedTaskManager(args.tasks_dir, args.shots)
    manager.load(tasks)  # before the model, so that a mistake in a task shows at once
    model = MllmLM(args.model, args.batch_size)
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks,
        num_fewshot=args.shots,
        batch_size=args.batch_size,
        limit=args.limit,
        task_manager=manager,
    )
    # Its own JSON rules, so that what is printed and what is written agree.
    results = json.loads(json.dumps(found, default=handle_non_serializable))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in results.pop("samples").items():
        path = args.out / f"samples_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    results["config"]["model"] = "mllm"
    results["mllm"] = {
        "harness": args.harness,
        "model": str(args.model),
        "model_fingerprint": model.exported.fingerprint,
        "tasks_dir": None if args.tasks_dir is None else str(args.tasks_dir),
        "device": model.exported.device,
        "dtype": model.exported.dtype,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
        "losses": model.losses,
        "notes": _notes(model.losses, model.max_length),
        "time_seconds": round(time.perf_counter() - started, 1),
    }
    write_json(args.out / "results.json", results)
    return results


def _notes(losses: dict[str, int], max_length: int | None) -> list[str]:
    """One line for each way in which a request was not asked as it was written."""
    notes = {
        "truncated_contexts": "contexts were cut from the left to the model's "
        f"{max_length} positions, as lm_eval does; their beginnings were not seen",
        "merged_borders": "candidates merge with the last token of their context and lost what "
        "merged, as lm_eval does",
    }
    return [f"{count} {notes[name]}" for name, count in losses.items() if count]


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot be meant before anything is loaded or written."""
    if args.harness == "lmms_eval":
        raise UserError(
            "--harness lmms_eval: it replaces torch, so it runs from its own environment, by its "
            "own command: `lmms-eval --model mllm --model_args model_dir=DIR --tasks TASKS` where "
            "`pip install --no-deps -e .` has made this package known to it"
        )
    if not args.tasks:
        raise UserError("TASKS are missing; see `mllm eval --harness lm_eval --help` for examples")
    for flag in ("model", "out"):
        if getattr(args, flag) is None:
            raise UserError(f"--{flag} is missing; see `mllm eval --harness lm_eval --help`")
    if not args.model.is_dir():
        raise UserError(f"--model {args.model}: no such folder; write one with `mllm export`")
    if args.tasks_dir is not None and not args.tasks_dir.is_dir():
        raise UserError(f"--tasks-dir {args.tasks_dir}: no such folder; give one of task YAMLs")
    for flag, value, least in (
        ("--limit", args.limit, 1),
        ("--batch-size", args.batch_size, 1),
        ("--shots", args.shots, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value}: must be at least {least}")
    path = args.out / "results.json"
    if path.exists() and '"harness"' not in path.read_text(encoding="utf-8"):
        raise UserError(f"{path}: of another `mllm eval` command; choose another --out")

"""`mllm eval`: suites or tasks on an export, scores beside what chance and controls say."""

import argparse
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from evals.api import SEPARATORS
from evals.data import DEFAULT_DEMO_DIR, read_data_paths
from evals.options import (
    CONSTRAINTS,
    CONTROLS,
    LANGUAGE_STYLES,
    MATCHES,
    PROMPT_STYLES,
    SHOWN_ANSWERS,
    TaskOptions,
)
from evals.scoring import NORM_NAMES
from evals.shots import HOWS
from evals.tasks import SPLIT_NAMES, SUITES, TASKS, data_names, make_task
from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError

EXAMPLES = """examples:
  mllm eval demo --model runs/demo/export --out runs/demo/eval
  mllm eval zeroshot --model runs/demo/export --split development --out /tmp/tuning
  mllm eval naming --model runs/demo/export --shots 0,2,4 --seeds 0,1,2 --limit 100 --out /tmp/k
  mllm eval vqav2 --model EXPORT --data coco=/data/coco --shots '0*,4' --workers 2 --out eval
  torchrun --nproc-per-node 8 -m mllm.cli eval zeroshot --model EXPORT --data data.yaml --out eval
  mllm eval naming --checkpoints runs/demo/pretrain --out runs/demo/over-training
  mllm eval list
  mllm eval score --task vqav2 --predictions answers.json --annotations val.json
  mllm eval --harness lm_eval TASKS --tasks-dir DIR --model runs/demo/export --out /tmp/lm_eval

Rows are appended as they are done; the same command continues in the same --out."""


def main(argv: list[str]) -> int:
    if argv and argv[0] == "score":
        from evals.score_command import main as score

        return score(argv[1:])
    if any(arg == "--harness" or arg.startswith("--harness=") for arg in argv):
        from evals.harness.command import main as harness

        return harness(argv)
    args = _parser().parse_args(argv)
    args.argv = argv  # --workers runs it again
    if args.suites == ["list"]:
        return _list(args)
    _check(args)
    if args.json:
        with stdout_is_json():
            content = _ask(args)
        if content is not None:
            print_json(content)
        return 0
    content = _ask(args)
    if content is not None:
        _print(args, content)
    return 0


def _ask(args: argparse.Namespace) -> dict[str, Any] | None:
    """What results.json or checkpoints.json holds; None on a process that only asks."""
    if args.checkpoints is not None:
        from evals.checkpoints import evaluate_checkpoints

        return evaluate_checkpoints(args)
    from evals.evaluate import evaluate

    return evaluate(args)


def _print(args: argparse.Namespace, content: dict[str, Any]) -> None:
    from evals.table import left_out_lines, print_scores, print_steps

    if args.checkpoints is not None:
        from evals.checkpoints import cells_by_step

        print_steps(cells_by_step(content["steps"]))
        print(f"{args.out / 'checkpoints.json'}: {len(content['steps'])} steps of {content['run']}")
    else:
        print_scores(content["cells"])
        for line in left_out_lines(content["left_out"]):
            print(f"left out: {line}")
        print(f"{args.out / 'results.json'}: {content['time_seconds']:.0f} s")
    if args.has_report:
        print(f"{args.out / 'report.html'}: open it in a browser")


def _parser() -> Parser:
    parser = Parser(
        prog="mllm eval",
        description="Zero-shot and few-shot evaluation with baselines and blind controls.",
        epilog=EXAMPLES,
    )
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="suites, tasks, or `list`")
    parser.add_argument("--model", type=Path, help="export folder")
    parser.add_argument(
        "--checkpoints", type=Path, metavar="RUN", help="every checkpoint of a run, over its steps"
    )
    parser.add_argument("--keep", action="store_true", help="leave the exports of --checkpoints")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR|NAME=DIR|FILE.yaml",
        help=f"demo corpus (default {DEFAULT_DEMO_DIR}), a data set's folder, or many in a YAML",
    )
    parser.add_argument("--out", type=Path, help="folder of samples.jsonl and results.json")
    parser.add_argument("--json", action="store_true", help="print results.json on stdout")
    parser.add_argument(
        "--no-report", action="store_false", dest="has_report", help="write no report.html"
    )
    parser.add_argument("--rescore", action="store_true", help="measure the rows of --out again")

    which = parser.add_argument_group("which queries")
    which.add_argument(
        "--split",
        choices=SPLIT_NAMES,
        default="final",
        help="of the demo's sets: tune on `development`, report `final` (default; `test` of most)",
    )
    which.add_argument("--limit", type=int, help="at most this many queries a cell, by id hash")
    which.add_argument("--full", action="store_true", help="all queries")
    which.add_argument(
        "--skip-missing", action="store_true", help="leave out, and count, missing pictures"
    )

    shots = parser.add_argument_group("shots")
    shots.add_argument("--shots", help="numbers of exemplars, such as 0,2,4; 0* for text alone")
    shots.add_argument("--seeds", default="0,1,2", help="of the exemplars (default 0,1,2)")
    shots.add_argument("--select", choices=HOWS, default="random", help="how they are chosen")
    shots.add_argument("--shots-file", type=Path, help="exemplar ids of --select fixed")
    shots.add_argument("--support", type=int, metavar="N", help="draw from N samples, by id hash")
    shots.add_argument(
        "--separator",
        choices=SEPARATORS,
        help="between exemplars (default eos; blank_line for --language-style lm_eval)",
    )
    shots.add_argument("--shown-answer", choices=SHOWN_ANSWERS, default="majority", help="of ten")

    asking = parser.add_argument_group("prompts and answers")
    asking.add_argument("--prompt-style", choices=PROMPT_STYLES, default="kosmos")
    asking.add_argument("--language-style", choices=LANGUAGE_STYLES, default="kosmos")
    asking.add_argument("--norm", choices=NORM_NAMES, help="headline norm of ranking tasks")
    asking.add_argument("--num-beams", type=int)
    asking.add_argument("--max-new-tokens", type=int)
    asking.add_argument("--length-penalty", type=float)
    asking.add_argument("--no-repeat-ngram", type=int)
    asking.add_argument("--stop", action="append", default=[], dest="stops", help="ends an answer")
    asking.add_argument("--constraint", choices=CONSTRAINTS, help="of answers to names")
    asking.add_argument("--okvqa-match", choices=MATCHES, default="raw")

    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=int, default=32, help="queries a batch (default 32)")
    running.add_argument("--workers", type=int, default=1, help="processes that share the queries")
    running.add_argument(
        "--controls",
        default="blind,permuted,own",
        help=f"of {','.join(CONTROLS)}, or none (default blind,permuted,own)",
    )
    return parser


def task_options(args: argparse.Namespace) -> TaskOptions:
    """The user's choices about tasks."""
    chosen = {field.name: getattr(args, field.name) for field in fields(TaskOptions)}
    return TaskOptions(**chosen | {"stops": tuple(args.stops)})


def shot_labels(args: argparse.Namespace) -> tuple[str, ...] | None:
    """`--shots` as labels: numbers, or `0*`."""
    if args.shots is None:
        return None
    if not re.fullmatch(r"(\d+|0\*)(,(\d+|0\*))*", args.shots):
        raise UserError(
            f"--shots {args.shots}: expected numbers divided by commas, such as 0,2,4; 0* stands "
            f"for two shots without their pictures"
        )
    return _distinct("--shots", args.shots)


def seeds(args: argparse.Namespace) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", args.seeds):
        raise UserError(f"--seeds {args.seeds}: expected numbers divided by commas, such as 0,1,2")
    return tuple(int(part) for part in _distinct("--seeds", args.seeds))


def controls(args: argparse.Namespace) -> tuple[str, ...]:
    if args.controls == "none":
        return ()
    names = _distinct("--controls", args.controls)
    for name in names:
        if name not in CONTROLS:
            raise UserError(
                f"--controls {args.controls}: no control {name!r}; one of "
                f"{', '.join(CONTROLS)}, or none"
            )
    return names


def _distinct(flag: str, text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if len(set(parts)) < len(parts):
        raise UserError(f"{flag} {text}: names one twice")
    return parts


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot be meant before anything is loaded or written."""
    labels = shot_labels(args)
    for name in args.suites:
        if name not in SUITES and name not in TASKS:
            known = ", ".join([*SUITES, *TASKS])
            raise UserError(f"no suite or task {name!r}; one of {known}; see `mllm eval list`")
        takes_none = name == "zeroshot" or (name in TASKS and not TASKS[name].takes_shots)
        if takes_none and labels not in (None, ("0",)):
            raise UserError(f"--shots {args.shots}: {name} is run without shots; leave --shots out")
    _check_checkpoints(args)
    if args.model is None and not args.rescore and args.checkpoints is None:
        raise UserError("--model is missing; see `mllm eval --help` for examples")
    if args.out is None:
        raise UserError("--out is missing; see `mllm eval --help` for examples")
    if args.model is not None and not args.model.is_dir():
        raise UserError(f"--model {args.model}: no such folder; write one with `mllm export`")
    for flag in ("limit", "batch_size", "workers", "support", "num_beams", "max_new_tokens"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least 1")
    if args.full and args.limit is not None:
        raise UserError("--full and --limit exclude each other; drop one")
    if (args.select == "fixed") != (args.shots_file is not None):
        raise UserError("--select fixed and --shots-file FILE belong together; give both")
    seeds(args)
    controls(args)


def _check_checkpoints(args: argparse.Namespace) -> None:
    if args.checkpoints is None:
        if args.keep:
            raise UserError("--keep: leaves the exports of --checkpoints RUN; give that too")
        return
    for flag, given in (("--model", args.model), ("--rescore", args.rescore)):
        if given:
            raise UserError(f"--checkpoints and {flag} exclude each other; drop one")
    if not args.checkpoints.is_dir():
        raise UserError(f"--checkpoints {args.checkpoints}: no such folder; name a run folder")


def _list(args: argparse.Namespace) -> int:
    """What there is, what it reads, where that comes from, and whether it is there."""
    paths = read_data_paths(args.data, data_names())
    options = task_options(args)
    rows = []
    for name, info in TASKS.items():
        try:
            make_task(name, paths, options)
            state = "ready"
        except UserError as error:
            folder = paths.find(name, info.data)
            reason = str(error).split(":")[0] if folder else f"--data {info.data}=DIR"
            state = f"missing: {reason}"
        rows.append(
            {
                "name": name,
                "about": info.about,
                "data": info.data,
                "files": info.files,
                "source": info.source,
                "state": state,
            }
        )
    if args.json:
        print_json({"suites": [{"name": n, "about": a} for n, a in SUITES.items()], "tasks": rows})
        return 0
    from evals.table import print_tasks

    print_tasks(SUITES, rows)
    return 0

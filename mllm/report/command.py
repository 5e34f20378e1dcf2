"""`mllm report RUN... [--eval DIR] [--corpus DIR] [--export DIR] [--times FILE] [--out FILE]`."""

from pathlib import Path
from typing import Any

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError
from mllm.files import write_aside
from mllm.report.inputs import (
    Run,
    read_export,
    read_json,
    read_results,
    read_runs,
    read_times,
)
from mllm.report.page import Inputs, build
from mllm.report.verdict import verdict

EXAMPLES = """examples:
  mllm report runs/demo/vision runs/demo/pretrain --eval runs/demo/eval \\
      --corpus runs/demo/corpus --export runs/demo/export --out runs/demo/report.html
  mllm report runs/a runs/b              curves over each other, in runs/a/report.html
"""


def parser() -> Parser:
    it = Parser(
        prog="mllm report",
        description="One self-contained HTML page over runs, scores, pictures and corpus.",
        epilog=EXAMPLES,
    )
    it.add_argument(
        "runs", nargs="+", metavar="RUN", type=Path, help="run folders, also unfinished"
    )
    it.add_argument(
        "--eval",
        dest="evals",
        action="append",
        type=Path,
        metavar="DIR",
        help="what `mllm eval --out` wrote (again for more; default RUN/eval where there is one)",
    )
    it.add_argument("--corpus", type=Path, metavar="DIR", help="what `mllm corpora demo` wrote")
    it.add_argument(
        "--export", type=Path, metavar="DIR", help="exported model (default RUN/export)"
    )
    it.add_argument("--times", type=Path, metavar="FILE", help="JSON list of step and seconds")
    it.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the first RUN"
    )
    it.add_argument("--title", default="mllm training report", help="heading of the page")
    it.add_argument("--seed", type=int, default=0, help="draws the pictures (default 0)")
    it.add_argument("--pictures", type=int, default=12, help="drawn per set (default 12)")
    it.add_argument("--json", action="store_true", help="print one JSON object")
    return it


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.pictures < 1:
        raise UserError(f"--pictures {args.pictures}: must be at least 1")
    out = args.out or args.runs[0] / "report.html"
    if out.is_dir():
        raise UserError(f"--out {out}: a folder; name the HTML file to write")
    with stdout_is_json():
        inputs = gather(args.runs, args.evals, args.corpus, args.export, args.times)
        page = build(inputs, args.title, args.seed, args.pictures)
        with write_aside(out) as file:
            file.write(page)
    if args.json:
        print_json(summary(inputs, out))
    else:
        print(f"{out}  ({len(page) / 1e6:.1f} MB, open it in a browser)")
        if not any(run.steps or run.validations for run in inputs.runs):
            names = ", ".join(str(run.path) for run in inputs.runs)
            print(f"no curves: no step stands in metrics.jsonl of {names} yet")
    return 0


def gather(
    run_paths: list[Path],
    eval_dirs: list[Path] | None,
    corpora_dir: Path | None,
    export_dir: Path | None,
    times_path: Path | None,
) -> Inputs:
    """Reads everything that is there and notes what is not.

    A path that was named but does not exist is a `UserError`; a file that its folder does not hold
    yet (a run that goes on, an evaluation not done) is a line on the page.
    """
    runs = read_runs(run_paths)
    named = [*(eval_dirs or []), *filter(None, [corpora_dir, export_dir])]
    for path in named:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; leave its option out or write it first")
    missing = [line for run in runs for line in missing_of_run(run)]

    found = eval_dirs or [p / "eval" for p in run_paths if (p / "eval" / "results.json").exists()]
    results = []
    for eval_dir in found:
        result = read_results(eval_dir)
        if result is None:
            missing.append(f"scores: {eval_dir} has no results.json (mllm eval ... --out)")
        else:
            results.append((eval_dir, result))
    if not found:
        missing.append("scores and pictures: no --eval folder")

    corpus_report = None
    if corpora_dir is None:
        missing.append("corpus statistics and the pictures themselves: no --corpus folder")
    else:
        corpus_report = read_json(corpora_dir / "report.json")
        if corpus_report is None:
            missing.append(f"corpus statistics: {corpora_dir} has no report.json")
        elif not isinstance(corpus_report, dict):
            raise UserError(f"{corpora_dir / 'report.json'}: not a JSON object; build it again")

    exports = [export_dir] if export_dir else [p / "export" for p in run_paths]
    export = next(filter(None, map(read_export, exports)), None)
    if export is None:
        missing.append("model sizes: no exported model (mllm export)")
    if times_path is None:
        missing.append("wall time of the steps: no --times file")
    return Inputs(
        runs=runs,
        results=results,
        corpora_dir=corpora_dir,
        corpus_report=corpus_report,
        export=export,
        times=read_times(times_path) if times_path else None,
        missing=missing,
    )


def missing_of_run(run: Run) -> list[str]:
    wanted = {
        "metrics.jsonl (no step was logged)": run.steps or run.validations,
        "config.yaml": run.config,
        "stream.json": run.stream or run.is_vision,
    }
    return [f"{run.label}: {name}" for name, value in wanted.items() if not value]


def summary(inputs: Inputs, out: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "out": str(out),
        "runs": [
            {"run": str(run.path), "label": run.label, "last_step": run.last_step}
            for run in inputs.runs
        ],
        "cells": [
            {
                key: cell.get(key)
                for key in ("suite", "split", "num_shots", "shots", "score", "se", "n")
            }
            | {"verdict": verdict(cell).word, "verdict_text": verdict(cell).text}
            for cell in inputs.cells
        ],
        "missing": inputs.missing,
    }

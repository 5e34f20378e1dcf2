"""`mllm corpora import KIND SOURCE... --out DIR`: foreign corpora to shards, index and report."""

import argparse
import contextlib
import os
from collections.abc import Iterable
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError

try:
    from corpora.pipeline.decontaminate import DecontaminationOptions
    from corpora.pipeline.dedup import DedupOptions
    from corpora.pipeline.executors import ExecutorOptions
    from corpora.pipeline.filters import FilterOptions
    from corpora.pipeline.plan import ImportOptions
    from corpora.pipeline.readers import FORMATS
    from corpora.pipeline.readers.base import ReadOptions
except ModuleNotFoundError as missing:
    package = (missing.name or "").split(".")[0]
    if package in ("corpora", "mllm"):
        raise
    raise UserError(f'mllm corpora import needs {package}: pip install "mllm[corpora]"') from None

DESCRIPTION = """\
Imports a corpus: shards, their index, and a report of what was kept and dropped and why.
The format is found by looking; --format names it. The same command started again goes on where it
was stopped. Its output is the same for any executor, number of tasks and workers.
"""
EXAMPLES = """\
examples:
  mllm corpora import pairs /data/cc3m --out runs/cc3m-index
  mllm corpora import pairs captions_train2017.json --image-dir train2017 --out runs/coco
  mllm corpora import interleaved docs_shard_*.jsonl --image-dir mmc4-images --out runs/mmc4 \\
      --filters kosmos1 --dedup-images perceptual --executor slurm --tasks 200 \\
      --slurm partition=cpu,time=12:00:00
  mllm corpora import text /data/pile --out runs/pile --dedup-near-text --decontaminate eval.jsonl
  mllm corpora import instruct alpaca_data.json --out runs/alpaca --workers 4

exit code 2 when fewer than --min-kept of the records were kept: the report stands, no index does.
"""

Options = TypeVar("Options", ReadOptions, FilterOptions, DedupOptions, DecontaminationOptions)


def build_parser() -> Parser:
    parser = Parser(
        prog="mllm corpora import",
        usage="mllm corpora import KIND SOURCE... --out DIR [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("kind", choices=list(FORMATS), metavar="KIND", help=", ".join(FORMATS))
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="files or folders")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder, or an unfinished one"
    )
    known = "; ".join(
        f"{kind}: {', '.join(each.name for each in formats)}" for kind, formats in FORMATS.items()
    )
    parser.add_argument("--format", metavar="NAME", help=f"instead of looking ({known})")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    _add_flags(parser.add_argument_group("where content stands"), ReadOptions())

    shards = parser.add_argument_group("what is written")
    shards.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N")
    shards.add_argument(
        "--unit-megabytes",
        type=int,
        default=256,
        metavar="N",
        help="about how much input is one unit of work, and one shard or more (default: 256)",
    )
    shards.add_argument(
        "--rewrite", action="store_true", help="write img2dataset's tars anew; do not only index"
    )
    shards.add_argument(
        "--statistics",
        action="store_true",
        help="also datatrove's statistics of characters, lines and words, in OUT/import-statistics",
    )
    shards.add_argument(
        "--min-kept",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="fail when a smaller share of the records is kept (default: 0.5)",
    )

    work = parser.add_argument_group("where it runs")
    work.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    work.add_argument("--tasks", type=int, metavar="N", help="default: 4 a worker")
    work.add_argument(
        "--workers", type=int, metavar="N", help="tasks at a time (default: processors, locally)"
    )
    work.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="partition and time; qos, cpus_per_task, mem_per_cpu_gb; others go to sbatch",
    )
    work.add_argument("--ray-address", metavar="HOST", help="default: a Ray of its own here")

    group = parser.add_argument_group("filters on records")
    group.add_argument("--filters", choices=("kosmos1",), help="the paper's rules for this kind")
    _add_flags(group, FilterOptions())
    _add_flags(parser.add_argument_group("duplicates"), DedupOptions(), "dedup-")
    group = parser.add_argument_group("contamination")
    group.add_argument(
        "--decontaminate",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an evaluation file; records that share its words or pictures are dropped",
    )
    _add_flags(group, DecontaminationOptions(), "decontaminate-")
    return parser


def main(argv: list[str]) -> int:
    from corpora.pipeline.report import summary
    from corpora.pipeline.run import import_corpus

    arguments = build_parser().parse_args(argv)
    filters = FilterOptions()
    if arguments.filters:
        filters = FilterOptions.kosmos1(arguments.kind)
    read = _given(ReadOptions(), arguments)
    if read.image_dir:  # absolute, like all paths: a job's folder is another
        read = replace(read, image_dir=os.path.abspath(read.image_dir))
    options = ImportOptions(
        kind=arguments.kind,
        sources=tuple(_absolute(source) for source in arguments.sources),
        out=_absolute(arguments.out),
        format=arguments.format,
        read=read,
        filters=_given(filters, arguments),
        dedup=_given(DedupOptions(), arguments, "dedup-"),
        evaluation_files=tuple(map(_absolute, arguments.decontaminate)),
        decontamination=_given(DecontaminationOptions(), arguments, "decontaminate-"),
        samples_per_shard=arguments.samples_per_shard,
        unit_megabytes=arguments.unit_megabytes,
        min_kept=arguments.min_kept,
        rewrite=arguments.rewrite,
        statistics=arguments.statistics,
    )
    workers = arguments.workers or len(os.sched_getaffinity(0))
    executor = ExecutorOptions(
        kind=arguments.executor,
        tasks=4 * workers if arguments.tasks is None else arguments.tasks,
        workers=workers,
        slurm=_pairs(arguments.slurm),
        ray_address=arguments.ray_address,
    )
    with stdout_is_json() if arguments.json else contextlib.nullcontext():
        report = import_corpus(options, executor)
    if arguments.json:
        print_json(report)
    elif report.get("submitted"):
        print(f"{report['out']}: submitted, {report['units']:,} units; last job {report['job']}")
    else:
        print("\n".join(summary(report)))
    return 0


def _absolute(path: Path) -> Path:
    return path if "://" in str(path) else Path(os.path.abspath(path))


def _add_flags(group: Any, defaults: Any, prefix: str = "") -> None:
    """A flag for each field of a dataclass of options, absent unless it is given."""
    for each in fields(defaults):
        default = getattr(defaults, each.name)
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": prefix + each.name}
        text = each.metadata["help"].replace("%", "%%")
        if isinstance(default, bool):
            settings |= {"action": argparse.BooleanOptionalAction, "help": text}
        else:
            shown = "" if default == "" or "default" in text else f" (default: {default})"
            settings |= {"type": type(default), "help": text + shown} | _choices(each)
        group.add_argument(f"--{prefix}{each.name.replace('_', '-')}", **settings)


def _choices(each: "Field[Any]") -> dict[str, Any]:
    if get_origin(each.type) is Literal:
        return {"choices": get_args(each.type)}
    return {"metavar": "N" if each.type is int else "X" if each.type is float else "NAME"}


def _given(defaults: Options, arguments: argparse.Namespace, prefix: str = "") -> Options:
    """The options with what the command line gives."""
    given = vars(arguments)
    names = (each.name for each in fields(defaults))
    return replace(defaults, **{n: given[prefix + n] for n in names if prefix + n in given})


def _pairs(given: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for item in ",".join(given).split(",") if given else ():
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise UserError(f"--slurm {item}: give NAME=VALUE, several divided by commas")
        pairs[name.strip()] = value.strip()
    return pairs

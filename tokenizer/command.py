"""`mllm tokenizer train` and `mllm tokenizer report`."""

from pathlib import Path
from typing import Any

from corpora.reader import Corpus
from mllm.command import Parser, print_json, progress
from mllm.errors import UserError
from mllm.files import write_json
from tokenizer.report import report
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import sample_documents, train_tokenizer

EXAMPLES = """
examples:
  mllm tokenizer train runs/demo/corpus/text/train runs/demo/corpus/pairs/train --out runs/demo/tokenizer
  mllm tokenizer report runs/demo/tokenizer runs/demo/corpus/text/validation --json
"""  # noqa: E501
REPORT_BYTES = 2_000_000  # of text; enough for three digits of every share


def main(argv: list[str]) -> int:
    parser = Parser(prog="mllm tokenizer", description=__doc__, epilog=EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    train = verbs.add_parser("train", description="Trains SentencePiece.", epilog=EXAMPLES)
    train.add_argument("corpora", nargs="+", metavar="CORPUS_DIR", help="indexed corpora")
    train.add_argument("--out", required=True, metavar="DIR", help="gets tokenizer.model")
    train.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="default 4096")
    train.add_argument(
        "--sample-bytes",
        type=int,
        default=10_000_000,
        metavar="N",
        help="text to train on, drawn evenly over all corpora; bounds the memory (default 10 MB)",
    )
    show = verbs.add_parser(
        "report", description="Round trip, fertility, byte fallback.", epilog=EXAMPLES
    )
    show.add_argument("tokenizer", metavar="DIR", help="folder with tokenizer.model")
    show.add_argument("corpora", nargs="+", metavar="CORPUS_DIR")
    for verb in (train, show):
        verb.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.verb == "train":
        if arguments.sample_bytes < 1:
            raise UserError(f"--sample-bytes {arguments.sample_bytes}: give 1 or more")
        train_tokenizer(
            arguments.corpora, arguments.out, arguments.vocab_size, arguments.sample_bytes
        )
        folder = Path(arguments.out)
    else:
        folder = Path(arguments.tokenizer)
    found = _report(Tokenizer(folder), arguments.corpora)
    if arguments.verb == "train":
        write_json(folder / "report.json", found)
    if arguments.json:
        print_json(found)
    else:
        _print_table(found)
    return 0


def _report(tokenizer: Tokenizer, corpus_dirs: list[str]) -> dict[str, Any]:
    documents = sample_documents([Corpus(path) for path in corpus_dirs], REPORT_BYTES)
    return report(tokenizer, progress(documents, "tokenizer report"))


def _print_table(found: dict[str, Any]) -> None:
    for name, value in found.items():
        print(f"{name.replace('_', ' '):22} {value if value != [] else 'none'}")

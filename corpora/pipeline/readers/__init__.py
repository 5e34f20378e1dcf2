"""Foreign formats to documents, a small file a family; `find_format` names that of a source."""

from pathlib import Path

from corpora.pipeline.readers.base import Format, ReadOptions
from corpora.pipeline.readers.coco import Coco, Karpathy
from corpora.pipeline.readers.html import Html
from corpora.pipeline.readers.instruct import Alpaca, Conversations, Flan, Messages, Unnatural
from corpora.pipeline.readers.interleaved import Mmc4, Obelics, SegmentsJson
from corpora.pipeline.readers.pairs import ImageFolder, ParquetPairs, Tsv
from corpora.pipeline.readers.rows import first_row
from corpora.pipeline.readers.tars import Img2dataset
from corpora.pipeline.readers.text import TextFiles, TextRows
from corpora.pipeline.units import files_under
from mllm.errors import UserError

# Kind to formats; where a source could be several, the first one takes it.
FORMATS: dict[str, tuple[type[Format], ...]] = {
    "pairs": (Img2dataset, ImageFolder, Karpathy, Coco, ParquetPairs, Tsv),
    "interleaved": (Mmc4, Obelics, SegmentsJson, Html),
    "text": (TextRows, TextFiles),
    "instruct": (Unnatural, Alpaca, Flan, Conversations, Messages),
}


def find_format(kind: str, source: Path, forced: str | None, options: ReadOptions) -> Format:
    """The format of a source.

    Raises:
        UserError: It is missing, or of no known format; names what was found and the flag.
    """
    if "://" in str(source):
        raise UserError(f"{source}: sources are read from mounted folders; copy or mount it first")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    formats = FORMATS[kind]
    if forced is not None:
        for candidate in formats:
            if candidate.name == forced:
                return candidate(options)
        names = ", ".join(candidate.name for candidate in formats)
        raise UserError(f"--format {forced}: {kind} have {names}")
    claimed = [found for found in (c(options) for c in formats) if found.claims(source)]
    if not claimed:
        raise UserError(f"{source}: {_description(source)}; {_wanted(kind)}")
    if kind == "text" and len(claimed) > 1:
        raise UserError(
            f"{source}: holds files of several formats; name one with --format "
            f"{' or '.join(found.name for found in claimed)}"
        )
    return claimed[0]


def _description(source: Path) -> str:
    """What lies there, for a message."""
    path = next(files_under(source, ("",)), None)
    if path is None:
        return "an empty folder"
    endings = (".parquet", ".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv")
    row = first_row(path) if path.name.lower().endswith(endings) else {}
    found = f"holds {path.name}" if source.is_dir() else "a file"
    return f"{found} with columns {', '.join(row)}" if row else found


def _wanted(kind: str) -> str:
    formats = "; ".join(f"{candidate.name} ({candidate.summary})" for candidate in FORMATS[kind])
    return f"no known format of {kind}; say which with --format: {formats}"

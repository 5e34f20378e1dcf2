"""Text: whole files, lines of files, and a column of JSON lines, parquet or CSV."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.document import Document, TextSegment
from corpora.pipeline.readers.base import BadRecord, Format, ReadLog
from corpora.pipeline.readers.rows import column
from corpora.pipeline.readers.streams import BROKEN, COMPRESSIONS, line_parts, lines, open_stream
from corpora.pipeline.readers.tables import RowFormat, meta_of, text_of
from corpora.pipeline.units import Part, files_under

MAX_FILE = 256 << 20  # bytes of a file that is one document
TOO_LARGE = "file too large for a document"
BLOCK = 1 << 13  # bytes; what a cut file has of its last block is lost
USUAL = ("text", "content", "raw_content", "document")


class TextFiles(Format):
    name = "txt"
    summary = ".txt and .md files, a document each (--one-per line: a document a line)"
    suffixes = (".txt", ".md", *(f".txt{c}" for c in COMPRESSIONS))

    def claims(self, source: Path) -> bool:
        path = next(files_under(source, self.suffixes), None)
        return path is not None and path.name.lower().endswith(self.suffixes)

    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        root = source if source.is_dir() else source.parent
        for path in files_under(source, self.suffixes):
            if self.options.one_per == "line":
                yield from line_parts(path, unit_bytes, root)
            else:
                yield Part(str(path), path.stat().st_size, root=str(root))

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        name = str(Path(part.path).relative_to(part.root))
        if self.options.one_per == "line":
            for where, line in lines(part, log):
                if not line.strip():
                    continue
                try:
                    yield Document("", (TextSegment(_decoded(line)),), {"file": name})
                except BadRecord as bad:
                    log.drop(bad.reason, where, bad.excerpt)
            return
        if part.size > MAX_FILE:
            log.drop(TOO_LARGE, name, "see --one-per line")
            return
        try:
            text = _decoded(_whole(part, log)).strip()
            if not text:
                raise BadRecord("no text")
            yield Document("", (TextSegment(text),), {"file": name})
        except BadRecord as bad:
            log.drop(bad.reason, name, bad.excerpt)


class TextRows(RowFormat):
    name = "rows"
    summary = (
        "JSON lines (.gz, .zst, .xz, .bz2), JSON lists, parquet, CSV with a text column; Dolma"
    )
    suffixes = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")

    def check(self, row: dict[str, Any], path: Path) -> None:
        column(row, self.options.text_column, USUAL, "--text-column", path)

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        name = self.options.text_column or next((n for n in USUAL if n in row), USUAL[0])
        yield Document("", (TextSegment(text_of(row, name)),), meta_of(row, name))


def _whole(part: Part, log: ReadLog) -> bytes:
    """A file's bytes with Unix line ends. BadRecord when it unpacks to more than MAX_FILE."""
    data = bytearray()
    try:
        with open_stream(Path(part.path)) as file:
            while block := file.read(BLOCK):
                data += block
                if len(data) > MAX_FILE:
                    raise BadRecord(TOO_LARGE, "see --one-per line")
    except BROKEN as error:
        log.breaks_off(part.path, error)
    return bytes(data).replace(b"\r\n", b"\n")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8", f"byte {error.start}") from None

"""Formats whose records are rows: a column or two make a document."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from corpora.document import Document
from corpora.pipeline.readers.base import BadRecord, Format, ReadLog
from corpora.pipeline.readers.rows import first_row, row_parts, row_suffixes, rows
from corpora.pipeline.units import Part, files_under
from mllm.errors import UserError

# Names with a meaning of their own in a sample's JSON.
RESERVED = ("text", "segments", "turns")


class RowFormat(Format):
    """Rows of files with certain endings."""

    suffixes: ClassVar[tuple[str, ...]]  # without compression

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._endings = row_suffixes(*self.suffixes)

    @abstractmethod
    def check(self, row: dict[str, Any], path: Path) -> None:
        """UserError, naming columns and flag, when a file's first row lacks what is needed."""

    @abstractmethod
    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        """The documents of a row. BadRecord drops it."""

    def claims(self, source: Path) -> bool:
        path = next(files_under(source, self._endings), None)
        if path is None or not path.name.lower().endswith(self._endings):
            return False
        try:
            self.check(first_row(path), path)
        except UserError:
            return False
        return True

    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        root = source if source.is_dir() else source.parent
        is_checked = False
        for path in files_under(source, self._endings):
            if not is_checked and (row := first_row(path)):
                self.check(row, path)
                is_checked = True
            yield from row_parts(path, unit_bytes, root)

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        for where, row in rows(part, log):
            try:
                yield from self.documents(row, part)
            except BadRecord as bad:
                log.drop(bad.reason, where, bad.excerpt)


def text_of(row: dict[str, Any], name: str, reason: str = "no text") -> str:
    """A column's text. BadRecord when it is missing, null, no text or blank."""
    value = row.get(name)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise BadRecord("not UTF-8") from None
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRecord(reason)
    if not isinstance(value, str):
        raise BadRecord(f"{name} is a {type(value).__name__}, not text", repr(value)[:200])
    return value


def meta_of(row: dict[str, Any], *without: str) -> dict[str, Any]:
    """The rest of a row as a sample's JSON: what has no JSON form is spelt as text."""
    return {
        name: _as_json(value)
        for name, value in row.items()
        if name not in without and name not in RESERVED and value is not None
    }


def _as_json(value: Any) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.encode(errors="replace").decode()
        case list() | tuple():
            return [_as_json(item) for item in value]
        case dict():
            return {str(name): _as_json(item) for name, item in value.items()}
        case bytes():
            return f"{len(value)} bytes"
    return str(value)

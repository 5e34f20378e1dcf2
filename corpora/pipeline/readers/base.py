"""What a foreign format has to say: its files, how they are cut, the documents in them.

A record that cannot be used is dropped with a reason of a few words, counted and shown in the
report; it never stops an import. A file that breaks off (truncated parquet, zst, gz) gives what
stands before the break, is named in the report and the command's last lines, and the import goes
on. A disk that fails stops the import: trying again may help there.
"""

from abc import ABC, abstractmethod
from collections import Counter as Counts
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from corpora.document import Document, ImageSegment, image_extension
from corpora.pipeline.judge import EXAMPLES_PER_REASON, EXCERPT, utf8_safe
from corpora.pipeline.options import option
from corpora.pipeline.units import Part

BREAKS_OFF = "file breaks off"


@dataclass(frozen=True)
class ReadOptions:
    """Where content stands in the input. Empty: found by the usual names."""

    text_column: str = option("", "column of the text or caption (default: the usual names)")
    image_column: str = option("", "column of the picture in parquet (default: the usual names)")
    columns: str = option("", "columns of a TSV without header, as in id,_,caption,image")
    image_dir: str = option("", "folder, .tar or .zip of the pictures that the input names")
    captions: Literal["all", "first"] = option("all", "of several captions of a picture")
    split: str = option("", "Karpathy's split to take, or several: train,restval (default: all)")
    one_per: Literal["file", "line"] = option("file", "a document of .txt and .md files")


class BadRecord(Exception):
    """A record that is dropped: `reason` is counted, `excerpt` shown."""

    def __init__(self, reason: str, excerpt: str = "") -> None:
        super().__init__(reason)
        self.reason, self.excerpt = reason, excerpt


@dataclass
class ReadLog:
    """What a reader met in one unit: drops by reason, what was left out of kept documents."""

    kept: int = 0
    bytes_before: int = 0  # of the unit's finished parts
    bytes_in_part: int = 0
    dropped: Counts[str] = field(default_factory=Counts)
    edited: Counts[str] = field(default_factory=Counts)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    broken_files: list[str] = field(default_factory=list)

    def drop(self, reason: str, where: str, excerpt: str = "") -> None:
        """Counts a record that is dropped."""
        self.dropped[reason] += 1
        self._show(reason, where, excerpt)

    def leave_out(self, what: str, where: str, excerpt: str = "") -> None:
        """Counts something left out of a document that is kept, such as a missing picture."""
        self.edited[what] += 1
        self._show(what, where, excerpt)

    def breaks_off(self, path: str, why: object) -> None:
        """The rest of a file cannot be read."""
        self.broken_files.append(utf8_safe(path))
        self.drop(BREAKS_OFF, path, str(why))

    def _show(self, reason: str, where: str, excerpt: str) -> None:
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES_PER_REASON:
            shown.append({"id": utf8_safe(where), "excerpt": utf8_safe(excerpt[:EXCERPT])})

    def to_dict(self) -> dict[str, Any]:
        """In the form of the files that `Judge` writes."""
        return {
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "edited": dict(self.edited),
            "examples": self.examples,
            "broken_files": self.broken_files,
        }


class Format(ABC):
    """One foreign format. Documents come without keys; the step that reads them gives keys."""

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for the command's help
    # Bytes of input that a byte of the listed files stands for; many where pictures lie elsewhere.
    weight: ClassVar[int] = 1

    def __init__(self, options: ReadOptions) -> None:
        self.options = options

    @abstractmethod
    def claims(self, source: Path) -> bool:
        """Whether this looks like the format; reads a record at most."""

    @abstractmethod
    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        """The parts of a source, in order.

        Raises:
            UserError: The source holds nothing of this format, or lacks a column.
        """

    @abstractmethod
    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        """The documents of a part, in order; what cannot be used goes to the log."""


def picture(data: object) -> ImageSegment:
    """An encoded picture as a segment. BadRecord when its first bytes are no picture's."""
    if not isinstance(data, bytes) or not data:
        raise BadRecord("no picture")
    try:
        image_extension(data)
    except ValueError:
        raise BadRecord("not a picture", repr(data[:40])) from None
    return ImageSegment(data)

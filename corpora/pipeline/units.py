"""The input cut into units: the fixed pieces of work that no number of tasks changes.

A unit is a run of neighbouring parts (small files) or one part of a large file, of about
`unit_bytes`. Units follow the order of the sources on the command line, and within each that of
names, a folder's files before its subfolders; so equal input gives equal units, keys and shards.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mllm.errors import UserError
from mllm.files import write_aside

MAX_PARTS = 10_000  # a unit of a million tiny files would be one long task


@dataclass(frozen=True)
class Part:
    """A file, or a range of it.

    Attributes:
        path: the file.
        size: bytes of the file that this part reads, for cutting and for the progress bar.
        start, stop: the range in what the format counts (bytes of lines, row groups, entries);
            None is the end.
        root: the folder that was named on the command line, or the file's own.
    """

    path: str
    size: int
    start: int = 0
    stop: int | None = None
    root: str = ""


Unit = tuple[Part, ...]


def cut(parts: Iterable[Part], unit_bytes: int) -> list[Unit]:
    """Groups neighbouring parts into units of at most `unit_bytes`, one part at least."""
    units: list[Unit] = []
    unit: list[Part] = []
    size = 0
    for part in parts:
        if unit and (size + part.size > unit_bytes or len(unit) == MAX_PARTS):
            units.append(tuple(unit))
            unit, size = [], 0
        unit.append(part)
        size += part.size
    if unit:
        units.append(tuple(unit))
    return units


def write_units(path: Path, units: list[Unit]) -> None:
    """One JSON line a unit."""
    with write_aside(path) as file:
        for unit in units:
            file.write(json.dumps([asdict(part) for part in unit]) + "\n")


def read_units(path: Path) -> list[Unit]:
    with open(path, encoding="utf-8") as file:
        return [tuple(Part(**part) for part in json.loads(line)) for line in file]


def files_under(source: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The source itself, or every file below it with one of the endings, in order.

    Hidden files and folders are passed over, and so are links to folders.
    """
    if source.is_file():
        yield source
        return
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.lower().endswith(suffixes) or name.startswith("."):
                continue
            if path.is_file():  # no pipe or socket, which would be waited for
                yield path
            elif path.is_symlink() and not path.exists():
                raise UserError(f"{path}: a link to nothing; mend it or take it away")


class Counter:
    """Tells the command how far a unit has come, by a small file, once a second and at its end.

    The file holds "RECORDS BYTES"; a reader that meets it half-written reads it again later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = 0
        self.bytes_done = 0
        self._written = time.monotonic()

    def tick(self) -> None:
        """One record more."""
        self.records += 1
        if time.monotonic() - self._written >= 1:
            self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        self.path.write_text(f"{self.records} {self.bytes_done}")

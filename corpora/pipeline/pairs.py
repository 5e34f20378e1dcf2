"""Pairs of equal or close entries, from tables that every unit wrote sorted.

A task takes its share of a table's keys, block by block: the same range of keys from all units'
files is read, sorted and compared, and nothing of it is kept. Memory is that of a block, whatever
the corpus, unless one single key has more entries than a block.

Pairs are written as datatrove's MinHash writes them: four uint32 (unit, place, unit, place), the
earlier in input order first. A place is the number of a record in its unit, or of an image.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numba import njit

from corpora.pipeline.picture_hash import COLOURS
from mllm.files import write_aside

ENTRY = np.dtype(
    [("key", "<u8"), ("check", "<u8"), ("colours", "u1", (COLOURS,)), ("place", "<u4")]
)  # 32 bytes
BLOCK = 2_000_000  # entries compared at a time; about 600 MB
SAMPLE = 65_536  # keys from which the ranges of blocks are drawn
# More pictures of one key than this are only compared with their WINDOW neighbours by hash: a
# hash that so many pictures share (blank pages) tells little, and all pairs would take for ever.
GROUP, WINDOW = 20_000, 256
PAIRS = 1_000_000  # pairs found before they are written
COLUMNS = ("c0", "c1", "c2")  # the 12 colours of an entry as three uint32, to sort by
_END = 2**64 - 1  # the last range goes on to this key, inclusive


@dataclass(frozen=True)
class ExactTable:
    """Entries match when key and check are equal: 128 bits of a digest."""

    name: str
    kind: str  # what a place is the number of: "exact" records, "image" images


@dataclass(frozen=True)
class NearTable:
    """Entries with equal key (masked bits of the hash) match when hashes and colours are close."""

    name: str
    kind: str
    mask: int
    distance: int  # bits
    tolerance: int  # levels of 255, in each colour of each quarter


Table = ExactTable | NearTable


def table_path(work_dir: Path, table: Table, unit: int) -> Path:
    return work_dir / "tables" / table.name / f"{unit:06d}.bin"


class FindPairs(PipelineStep):
    """Rank r compares share r % num_shares of table r // num_shares."""

    type = "DEDUP"
    name = "pairs"

    def __init__(self, tables: list[Table], num_shares: int, work_dir: Path) -> None:
        super().__init__()
        self.tables = tables
        self.num_shares = num_shares
        self.work_dir = work_dir

    @property
    def num_ranks(self) -> int:
        return len(self.tables) * self.num_shares

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        number, share = divmod(rank, self.num_shares)
        table = self.tables[number]
        is_first_look = not any(isinstance(t, NearTable) for t in self.tables[:number])
        folder = self.work_dir / "pairs" / table.kind
        with write_aside(folder / f"{table.name}_{share:04d}.dups", "wb") as file:
            for block in self._blocks(table, share):
                if isinstance(table, ExactTable):
                    same = _same(block, ("key", "check"))
                    _write(file, block, _firsts(same), np.flatnonzero(same))
                else:
                    self._near(file, table, block, is_first_look)

    def _near(
        self, file: IO[bytes], table: NearTable, block: np.ndarray, is_first_look: bool
    ) -> None:
        # Equal ones first, once: a picture that stands there a million times is compared as one.
        same = _same(block, ("key", "check", *COLUMNS))
        if is_first_look:
            _write(file, block, _firsts(same), np.flatnonzero(same))
        block = block[~same]
        stops = np.append(np.flatnonzero(block["key"][1:] != block["key"][:-1]) + 1, len(block))
        sizes = np.diff(stops, prepend=0)
        if (large := int((sizes > GROUP).sum())) > 0:
            self.stat_update("groups compared in part", value=large)
        reach = np.repeat(stops, sizes)  # where each entry's group ends
        reach = np.where(
            np.repeat(sizes, sizes) > GROUP,
            np.minimum(reach, np.arange(len(block)) + WINDOW),
            reach,
        )
        found = np.empty((PAIRS, 2), np.int64)
        colours = np.ascontiguousarray(block["colours"])
        check = np.ascontiguousarray(block["check"])
        one = other = 0
        while one < len(block):
            one, other, count = _close(
                check, colours, reach, table.distance, table.tolerance, one, other, found
            )
            _write(file, block, found[:count, 0], found[:count, 1])

    def _blocks(self, table: Table, share: int) -> Iterator[np.ndarray]:
        """Entries of this share, a range of keys at a time, with `unit` and COLUMNS, sorted."""
        paths = sorted((self.work_dir / "tables" / table.name).glob("*.bin"))
        for low, high in self._ranges(paths, share):
            parts = [_read_range(path, low, high) for path in paths]
            block = np.concatenate(parts)
            order = [block[name] for name in ("place", "unit", *COLUMNS, "check", "key")]
            yield block[np.lexsort(order)]

    def _ranges(self, paths: list[Path], share: int) -> list[tuple[int, int]]:
        """This share's ranges of keys, of about BLOCK entries each by a sample of all keys."""
        total = sum(path.stat().st_size for path in paths) // ENTRY.itemsize
        if total == 0:
            return []
        stride, offset = max(1, total // SAMPLE), 0
        sample: list[np.ndarray] = []
        for path in paths:
            keys = _open(path)["key"]
            sample.append(np.array(keys[-offset % stride :: stride]))
            offset += len(keys)
        drawn = np.sort(np.concatenate(sample))
        num_blocks = max(self.num_shares, -(-total // BLOCK))
        cuts = [int(drawn[len(drawn) * n // num_blocks]) for n in range(1, num_blocks)]
        return list(pairwise(sorted({0, *cuts, _END})))[share :: self.num_shares]


def _open(path: Path) -> np.ndarray:
    """ENTRY (N,), mapped; a file without entries cannot be."""
    return np.memmap(path, ENTRY, "r") if path.stat().st_size else np.zeros(0, ENTRY)


def _read_range(path: Path, low: int, high: int) -> np.ndarray:
    """A unit's entries with low <= key < high, its number, and its colours as COLUMNS."""
    mapped = _open(path)
    # Not np.searchsorted: it would copy the whole column first.
    keys = mapped["key"]
    start = bisect_left(keys, low)
    stop = len(keys) if high == _END else bisect_left(keys, high)
    wide = np.empty(stop - start, ENTRY.descr + [(n, "<u4") for n in ("unit", *COLUMNS)])
    for name in ENTRY.names or ():
        wide[name] = mapped[name][start:stop]
    wide["unit"] = int(path.stem)
    columns = np.ascontiguousarray(wide["colours"]).view("<u4")  # (N, 3)
    for number, name in enumerate(COLUMNS):
        wide[name] = columns[:, number]
    return wide


def _same(block: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """bool (N,): whether an entry equals the one before it."""
    same = np.zeros(len(block), bool)
    same[1:] = np.logical_and.reduce([block[n][1:] == block[n][:-1] for n in names])
    return same


def _firsts(same: np.ndarray) -> np.ndarray:
    """int64 (same.sum(),): for each entry that equals the one before it, where its run begins."""
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))
    return starts[same]


def _write(file: IO[bytes], block: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    names = ("unit", "place")
    columns = [block[name][index] for index in (one, other) for name in names]
    file.write(np.stack(columns, axis=1).astype("<u4").tobytes())  # (pairs, 4)


@njit(cache=True)
def _close(check, colours, reach, distance, tolerance, one, other, found):  # type: ignore[no-untyped-def]
    """Fills `found` with close pairs from (one, other) on; gives where to go on, and how many."""
    count = 0
    for i in range(one, len(check)):
        for j in range(max(other, i + 1), reach[i]):
            bits = check[i] ^ check[j]
            apart = 0
            while bits and apart <= distance:
                bits &= bits - np.uint64(1)
                apart += 1
            if apart > distance:
                continue
            is_close = True
            for k in range(colours.shape[1]):
                shade = np.int64(colours[i, k]) - np.int64(colours[j, k])
                is_close = is_close and abs(shade) <= tolerance
            if not is_close:
                continue
            if count == len(found):
                return i, j, count
            found[count, 0], found[count, 1] = i, j
            count += 1
        other = 0
    return len(check), 0, count

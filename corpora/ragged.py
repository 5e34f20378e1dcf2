"""Runs of varying length in one flat array, at two to four bytes a run.

A corpus of 10^9 samples has as many runs (members, key bytes, images); int64 starts would cost
eight bytes each. Here a count is stored per run and a start per block of BLOCK runs.
"""

import itertools
import mmap
from pathlib import Path

import numpy as np

from mllm.errors import UserError

BLOCK = 1024


class Ragged:
    """Where each of N runs lies in a flat array.

    Attributes:
        counts: uint16 or uint32 (N,), items of each run.
        block_starts: int64 (ceil(N / BLOCK) + 1,), where each block's first run begins; the last
            entry is the number of items in all.
    """

    def __init__(self, counts: np.ndarray, block_starts: np.ndarray) -> None:
        self.counts, self.block_starts = counts, block_starts

    @classmethod
    def from_counts(cls, counts: np.ndarray) -> "Ragged":
        """Counts of any integer type, none negative."""
        kind = np.uint16 if counts.max(initial=0) < 1 << 16 else np.uint32
        firsts = np.arange(0, len(counts), BLOCK)
        sums = np.add.reduceat(counts.astype(np.int64), firsts) if len(counts) else firsts
        return cls(counts.astype(kind), np.concatenate([[0], np.cumsum(sums)]).astype(np.int64))

    @classmethod
    def load(cls, folder: Path, name: str) -> "Ragged":
        """Memory-mapped from `name_counts.npy` and `name_blocks.npy`."""
        return cls(load_array(folder, f"{name}_counts"), load_array(folder, f"{name}_blocks"))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What `load` reads, by file stem."""
        return {f"{name}_counts": self.counts, f"{name}_blocks": self.block_starts}

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> int:
        """Items of all runs."""
        return int(self.block_starts[-1])

    def span(self, i: int) -> tuple[int, int]:
        """Start and stop of run `i`, 0 <= i < N; touches one block."""
        block = i // BLOCK
        first = block * BLOCK
        start = int(self.block_starts[block]) + int(self.counts[first:i].sum(dtype=np.int64))
        return start, start + int(self.counts[i])

    def starts(self) -> np.ndarray:
        """int64 (N + 1,): all starts at once, for small N and for tests."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])


def load_array(folder: Path, name: str) -> np.ndarray:
    """Memory-maps `name.npy`; a plain ndarray over the map, which indexes faster than memmap."""
    path = folder / f"{name}.npy"
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or cut; run `mllm corpora index` on the corpus") from None


def expect_random_access(*owners: object) -> None:
    """Has the pages of the owners' memory-mapped arrays read as asked for, with none around them.

    Reading around each page brought 1.6 GB for the first batch of a corpus of 10^9 samples.
    """
    for value in itertools.chain.from_iterable(vars(owner).values() for owner in owners):
        if isinstance(value, Ragged):
            expect_random_access(value)
        base = value
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap):
            base.madvise(mmap.MADV_RANDOM)

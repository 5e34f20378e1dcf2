"""What may be wrong with a corpus as a whole: repetitions, missing halves of pairs, a stale index.

All of it is found in the arrays of an index, a part at a time.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from corpora.checks import Finding
from corpora.duplicates import SCAN, duplicates
from corpora.ragged import Ragged, load_array
from mllm.errors import UserError

PAIRS = 0.9  # a corpus of pairs has at least this share of them


class IndexArrays:
    """A consolidated index, opened without its shards."""

    def __init__(self, index_dir: Path) -> None:
        index = json.loads((index_dir / "index.json").read_bytes())
        self.name: str = index["arrays"]
        self.shards: list[str] = index["shards"]
        self.numbers = {shard: number for number, shard in enumerate(self.shards)}
        folder = index_dir / self.name
        self.starts: list[int] = load_array(folder, "shard_starts").tolist()
        self.key_hashes = load_array(folder, "key_hashes")
        self.contents = load_array(folder, "content_hashes")
        self.text_bytes = load_array(folder, "text_bytes")
        self.num_images = Ragged.load(folder, "images").counts
        self._members = Ragged.load(folder, "members")
        self._member_blocks = load_array(folder, "member_blocks")
        self._keys, self._key_bytes = Ragged.load(folder, "keys"), load_array(folder, "key_bytes")

    def __len__(self) -> int:
        return len(self.text_bytes)

    def key(self, i: int) -> str:
        start, stop = self._keys.span(i)
        return self._key_bytes[start:stop].tobytes().decode()

    def shard_of(self, i: int) -> str:
        return self.shards[bisect_right(self.starts, i) - 1]

    def finding(self, i: int, kind: str, detail: str) -> Finding:
        return Finding("warning", kind, detail, self.shard_of(i), self.key(i))

    def samples_of(self, shard: str) -> range:
        number = self.numbers[shard]
        return range(self.starts[number], self.starts[number + 1])

    def blocks(self, samples: range) -> np.ndarray:
        """Where the members of a run of samples lie."""
        if not samples:
            return np.zeros(0, np.uint32)
        start, stop = self._members.span(samples[0])[0], self._members.span(samples[-1])[1]
        return self._member_blocks[start:stop]


def repeated(found: IndexArrays) -> Iterator[Finding]:
    for first, later in duplicates(found.key_hashes):
        if found.key(first) == found.key(later):
            yield found.finding(later, "duplicate key", f"also in {found.shard_of(first)}")
    for first, later in duplicates(found.contents.view(np.uint64)[:, 0]):
        if found.contents[first].tobytes() == found.contents[later].tobytes():
            detail = f"as {found.key(first)} in {found.shard_of(first)}"
            yield found.finding(later, "same content", detail)


def missing_halves(found: IndexArrays) -> Iterator[Finding]:
    """Pictures without text and texts without picture, where nearly all else are pairs."""
    parts = [slice(start, start + SCAN) for start in range(0, len(found), SCAN)]
    pairs = halves = others = 0
    for part in parts:
        images, has_text = found.num_images[part], found.text_bytes[part] > 0
        pairs += int(((images == 1) & has_text).sum())
        halves += int(_is_half(images, has_text).sum())
        others += int((images > 1).sum())
    if pairs < PAIRS * (pairs + halves + others):
        return
    for part in parts:
        images, has_text = found.num_images[part], found.text_bytes[part] > 0
        for place in np.flatnonzero(_is_half(images, has_text)).tolist():
            detail = "a text without a picture" if has_text[place] else "a picture without a text"
            yield found.finding(part.start + place, "missing pair", f"{detail}, among pairs")


def _is_half(images: np.ndarray, has_text: np.ndarray) -> np.ndarray:
    return ((images == 1) & ~has_text) | ((images == 0) & has_text)


def stale(
    corpus_dir: str | Path, index_dir: Path, found: IndexArrays, broken: set[str]
) -> Iterator[Finding]:
    """Where the index that readers use says other than the shards do."""
    mend = f"run `mllm corpora index {corpus_dir}`"
    try:
        indexed = IndexArrays(index_dir)
    except FileNotFoundError:
        yield Finding("warning", "no index", f"{index_dir} holds none; {mend}")
        return
    except (ValueError, KeyError, UserError):
        yield Finding("error", "index is stale", f"{index_dir}: cannot be read; {mend}")
        return
    if (indexed.name, indexed.shards) == (found.name, found.shards):
        return
    for shard in sorted(found.numbers.keys() | indexed.numbers.keys()):
        if shard not in found.numbers:
            yield Finding("error", "index is stale", f"the shard is missing; {mend}", shard)
        elif shard not in indexed.numbers:
            yield Finding("error", "index is stale", f"newer than the index; {mend}", shard)
        elif shard not in broken:
            yield from _stale_samples(found, indexed, shard, mend)


def _stale_samples(
    found: IndexArrays, indexed: IndexArrays, shard: str, mend: str
) -> Iterator[Finding]:
    here, there = found.samples_of(shard), indexed.samples_of(shard)
    same = len(here) == len(there) and np.array_equal(found.blocks(here), indexed.blocks(there))
    if not same:
        yield Finding("error", "index is stale", f"its samples lie elsewhere; {mend}", shard)
        return
    differ = (
        found.key_hashes[here.start : here.stop] != indexed.key_hashes[there.start : there.stop]
    )
    contents = found.contents[here.start : here.stop] != indexed.contents[there.start : there.stop]
    for place in np.flatnonzero(differ | contents.any(axis=1)).tolist():
        detail = f"the content is not what was indexed; {mend}"
        yield replace(found.finding(here[place], "index is stale", detail), level="error")

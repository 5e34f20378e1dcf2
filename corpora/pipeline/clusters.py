"""From pairs to what goes: duplicates of duplicates belong together, and the first one stays.

datatrove's own cluster step keeps the root of its union tree, which depends on the order of pairs
and need not be the first record; it holds Python objects for every pair. Here a pair's ends are
numbers in a sorted array.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numba import njit

from mllm.files import write_aside

# A record (or image) that goes, and the one that stays for it; sorted by unit and place.
REMOVAL = np.dtype([("unit", "<u4"), ("place", "<u4"), ("kept_unit", "<u4"), ("kept_place", "<u4")])
KINDS = ("exact", "near", "image")
READ = 1_000_000  # pairs read at a time


class Clusters(PipelineStep):
    """Writes `WORK/removals/KIND.bin`.

    One kind after the other: what an earlier kind drops cannot survive for a later one, so two
    records never drop each other. Memory: 24 bytes (at the peak 40) for each record or image that
    stands in a pair.
    """

    type = "DEDUP"
    name = "clusters"

    def __init__(self, work_dir: Path) -> None:
        super().__init__()
        self.work_dir = work_dir

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        dropped = np.zeros(0, np.uint64)  # records, as nodes
        for kind in KINDS:
            paths = sorted((self.work_dir / "pairs" / kind).glob("*.dups"))
            nodes, labels = _components(paths)
            records = self._records_of(nodes) if kind == "image" else nodes
            is_alive = ~np.isin(records, dropped, assume_unique=kind != "image")
            removals = _removals(nodes, labels, is_alive)
            with write_aside(self.work_dir / "removals" / f"{kind}.bin", "wb") as file:
                file.write(removals.tobytes())
            self.stat_update(f"{kind} duplicates", value=len(removals))
            if kind != "image":
                gone = _nodes(removals["unit"], removals["place"])
                dropped = _union([dropped, gone])

    def _records_of(self, nodes: np.ndarray) -> np.ndarray:
        """uint64 (N,): the record in which each image of `nodes` (sorted) stands."""
        records = nodes.copy()
        units = nodes >> np.uint64(32)
        cuts = np.flatnonzero(units[1:] != units[:-1]) + 1
        for start, stop in pairwise([0, *cuts.tolist(), len(nodes)] if len(nodes) else []):
            unit = int(units[start])
            ends = np.cumsum(np.load(self.work_dir / "images" / f"{unit:06d}.npy"))
            places = (nodes[start:stop] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            found = np.searchsorted(ends, places, side="right")
            records[start:stop] = _nodes(np.full(len(found), unit), found)
        return records


def _nodes(units: np.ndarray, places: np.ndarray) -> np.ndarray:
    """uint64 (N,) that sort as (unit, place) do."""
    return (units.astype(np.uint64) << np.uint64(32)) | places.astype(np.uint64)


def _pairs(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(one, other) as nodes, a part of the file at a time."""
    with open(path, "rb") as file:
        while len(part := np.fromfile(file, "<u4", READ * 4)):
            part = part.reshape(-1, 4)
            yield _nodes(part[:, 0], part[:, 1]), _nodes(part[:, 2], part[:, 3])


def _components(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes that stand in pairs, uint64 (N,) sorted, and the first node connected to each.

    The second is int64 (N,), an index into the first.
    """
    nodes = _union(end for path in paths for pair in _pairs(path) for end in pair)
    parents = np.arange(len(nodes))
    for path in paths:
        for one, other in _pairs(path):
            _unite(parents, np.searchsorted(nodes, one), np.searchsorted(nodes, other))
    _flatten(parents)
    return nodes, parents


def _union(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """uint64 (N,): every value once, sorted. Merges like sizes, so each value seldom."""
    stack: list[np.ndarray] = []
    for array in arrays:
        stack.append(_once(np.sort(array)))  # np.unique hashes: slower on large arrays
        while len(stack) > 1 and len(stack[-2]) < 2 * len(stack[-1]):
            stack.append(_merge(stack.pop(), stack.pop()))
    while len(stack) > 1:
        stack.append(_merge(stack.pop(), stack.pop()))
    return stack[0] if stack else np.zeros(0, np.uint64)


def _merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return _once(np.sort(np.concatenate([one, other])))


def _once(values: np.ndarray) -> np.ndarray:
    """Sorted values without repetitions."""
    is_new = np.ones(len(values), bool)
    is_new[1:] = values[1:] != values[:-1]
    return values[is_new]


def _removals(nodes: np.ndarray, labels: np.ndarray, is_alive: np.ndarray) -> np.ndarray:
    """REMOVAL (M,): every living node but the first of its component."""
    alive = np.flatnonzero(is_alive)
    first = np.empty(len(nodes), np.int64)  # of each component that has a living node
    first[labels[alive[::-1]]] = alive[::-1]  # the last assignment stands: the smallest
    kept = first[labels[alive]]
    goes = kept != alive
    removals = np.empty(int(goes.sum()), REMOVAL)
    for name, chosen in (("", alive[goes]), ("kept_", kept[goes])):
        removals[f"{name}unit"] = nodes[chosen] >> np.uint64(32)
        removals[f"{name}place"] = nodes[chosen] & np.uint64(0xFFFFFFFF)
    return removals


@njit(cache=True)
def _root(parents, node):  # type: ignore[no-untyped-def]
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@njit(cache=True)
def _unite(parents, ones, others):  # type: ignore[no-untyped-def]
    for n in range(len(ones)):
        one, other = _root(parents, ones[n]), _root(parents, others[n])
        parents[max(one, other)] = min(one, other)


@njit(cache=True)
def _flatten(parents):  # type: ignore[no-untyped-def]
    for node in range(len(parents)):
        parents[node] = _root(parents, node)

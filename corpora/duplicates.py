"""Equal values in an array larger than memory."""

from collections.abc import Iterator

import numpy as np

PASS = 1 << 23  # values sorted at once, about 300 MB
SCAN = 1 << 20  # values read at once


def duplicates(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (first, later) for each value that has stood before.

    Values are spread over passes by their lowest bits, so equal ones meet in one pass.

    Args:
        hashes: uint64 (N,), evenly spread; may be memory-mapped.
    """
    passes = -(-len(hashes) // PASS)
    for number in range(passes):
        places, values = [], []
        for start in range(0, len(hashes), SCAN):
            part = np.asarray(hashes[start : start + SCAN])
            chosen = np.flatnonzero(part % np.uint64(passes) == number)
            places.append(chosen + start)
            values.append(part[chosen])
        yield from _of_pass(np.concatenate(places), np.concatenate(values))


def _of_pass(places: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, int]]:
    order = np.argsort(values, kind="stable")
    ordered, places = values[order], places[order]
    is_later = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    firsts = np.searchsorted(ordered, ordered[is_later])
    yield from zip(places[firsts].tolist(), places[is_later].tolist(), strict=True)

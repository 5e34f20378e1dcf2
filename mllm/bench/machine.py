"""What a measurement ran on, and how two sides are measured fairly."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

# For the texts of corpora made on the spot.
SENTENCE = "a small red house by the river under tall green trees with two white birds and snow"
WORDS = SENTENCE.split()


def describe(*packages: str) -> dict[str, Any]:
    """Cores, Python and the versions of `packages`: stands in every result file."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


# Does the work once; returns how many items it handled, or that and the seconds it counted itself.
Side = Callable[[], float | tuple[float, float]]


def interleaved(sides: Mapping[str, Side], rounds: int) -> dict[str, dict[str, Any]]:
    """Runs each side once a round, in turn, so that a slow minute hits all of them.

    Args:
        sides: by name.
        rounds: times each is run.

    Returns:
        For each side the rates in items per second, sorted, and their median.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            began = time.perf_counter()
            items = work()
            seconds = time.perf_counter() - began
            if isinstance(items, tuple):
                items, seconds = items
            rates[name].append(items / seconds)
    return {
        name: {"median": statistics.median(values), "rates": sorted(values)}
        for name, values in rates.items()
    }

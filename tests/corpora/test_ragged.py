"""Runs in a flat array: spans equal sums, and pages are read one by one where asked."""

import re
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corpora.ragged import BLOCK, Ragged, expect_random_access


@given(
    st.lists(st.integers(0, 70_000), max_size=40),
    st.integers(0, 2 * BLOCK),
    st.data(),
)
def test_spans_are_running_sums(counts, num_equal, data):
    counts = np.array([*counts, *[3] * num_equal], dtype=np.int64)
    runs = Ragged.from_counts(counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    assert (runs.starts() == starts).all() and runs.total == starts[-1]
    if len(counts):
        i = data.draw(st.integers(0, len(counts) - 1))
        assert runs.span(i) == (starts[i], starts[i + 1])


def reads_ahead(path: Path) -> bool:
    """Whether this process's mapping of a file lacks the kernel's mark of random reads."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    flags = [found.split("VmFlags:")[1].split() for found in maps if str(path) in found]
    assert flags
    return any("rr" not in marks for marks in flags)


def test_random_access_reads_no_page_around(tmp_path):
    for name, array in Ragged.from_counts(np.arange(5000)).arrays("runs").items():
        np.save(tmp_path / f"{name}.npy", array)
    runs = Ragged.load(tmp_path, "runs")
    assert reads_ahead(tmp_path / "runs_counts.npy")
    expect_random_access(runs)
    assert not reads_ahead(tmp_path / "runs_counts.npy")
    assert not reads_ahead(tmp_path / "runs_blocks.npy")

import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.bench.shuffle import quality
from mllm.stream.permute import BLOCK_ROWS, BLOCKS_TOGETHER, epoch_row, hash_key, mix, permute


def epoch(num_rows, key, *blocks):
    keys = np.full(num_rows, key, dtype=np.uint64)
    return epoch_row(np.arange(num_rows), np.full(num_rows, num_rows), keys, *blocks)


@given(
    num_rows=st.integers(1, 700),
    key=st.integers(0, 2**64 - 1),
    block_rows=st.integers(1, 900),
    blocks_together=st.integers(1, 20),
)
@settings(deadline=None, max_examples=300)
def test_an_epoch_has_every_row_once(num_rows, key, block_rows, blocks_together):
    assert sorted(epoch(num_rows, key, block_rows, blocks_together)) == list(range(num_rows))


@given(num_rows=st.integers(1, 40_000), key=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=20)
def test_an_epoch_has_every_row_once_with_the_blocks_in_use(num_rows, key):
    assert (np.bincount(epoch(num_rows, key), minlength=num_rows) == 1).all()


@given(data=st.data(), num_rows=st.integers(1, 10**10))
@settings(deadline=None, max_examples=50)
def test_a_position_is_the_same_alone_and_among_others_of_other_sources(data, num_rows):
    sizes = np.array([num_rows, 1, 33, 5000, num_rows])
    positions = np.array([data.draw(st.integers(0, int(size) - 1)) for size in sizes])
    keys = np.arange(5, dtype=np.uint64)
    together = epoch_row(positions, sizes, keys)
    for i in range(5):
        alone = epoch_row(positions[i : i + 1], int(sizes[i]), keys[i])
        assert alone.tolist() == [together[i]]
        assert 0 <= together[i] < sizes[i]


def test_a_stretch_of_the_epoch_comes_from_a_few_long_runs_of_rows():
    num_rows = 100_000
    order = epoch(num_rows, hash_key("a"), 256, 16)
    for first in range(0, num_rows - 8192, 4096):
        rows = np.sort(order[first : first + 4096])
        # Two groups of 16 blocks or one more, and a block at the turn of the ring.
        assert (np.diff(rows) > 256).sum() <= 2 * 17 + 1
    neighbours = np.abs(np.diff(order)) < 256
    assert neighbours.mean() < 2 / 16
    assert abs(np.corrcoef(order, np.arange(num_rows))[0, 1]) < 0.2


def test_the_measure_of_a_shuffle_tells_orders_apart():
    num_rows = 64 * BLOCK_ROWS * BLOCKS_TOGETHER
    unshuffled = quality(np.arange(num_rows), 256)
    full = quality(np.random.default_rng(0).permutation(num_rows), 256)
    ours = quality(epoch(num_rows, hash_key("b")), 256)
    assert unshuffled["rank_correlation"] > 0.999
    assert unshuffled["neighbours_in_block"] == pytest.approx(1 - 1 / BLOCK_ROWS, abs=1e-4)
    assert unshuffled["blocks_per_batch"] == 256 / BLOCK_ROWS
    assert unshuffled["runs_in_reach"] == 1
    assert full["median_distance"] == pytest.approx(1 - np.sqrt(0.5), abs=0.01)
    assert abs(full["rank_correlation"]) < 0.02
    # Rows far apart meet as in a full shuffle; reading takes a small part of its runs.
    assert ours["median_distance"] > 0.8 * full["median_distance"]
    assert abs(ours["rank_correlation"]) < 0.1
    assert ours["neighbours_in_block"] < 1.5 / BLOCKS_TOGETHER
    assert ours["blocks_per_batch"] > BLOCKS_TOGETHER
    assert ours["runs_in_reach"] < 2.5 * BLOCKS_TOGETHER < full["runs_in_reach"] / 5


def test_no_row_is_favoured_by_its_place_in_a_block():
    """Over many epochs, each row of a corpus with a short last block comes at every place."""
    orders = np.array([epoch(23, hash_key("epoch", e), 5, 2) for e in range(4000)])
    for place in (0, 4, 11, 20, 22):
        counts = np.bincount(orders[:, place], minlength=23)
        expected = 4000 / 23
        assert ((counts - expected) ** 2 / expected).sum() < 22 + 5 * np.sqrt(2 * 22)


def test_keys_give_different_orders_that_look_random():
    orders = [epoch(1000, hash_key("epoch", e)) for e in range(20)]
    correlations = np.corrcoef(orders)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 0.15  # 1 / sqrt(1000) = 0.03 is one standard deviation
    against_order = [np.corrcoef(order, np.arange(1000))[0, 1] for order in orders]
    assert np.abs(against_order).max() < 0.15


def test_every_permutation_of_a_few_is_as_likely():
    keys = mix(np.arange(24_000, dtype=np.uint64))
    sizes = np.full(len(keys), 4, dtype=np.uint64)
    columns = [permute(np.full(len(keys), i, dtype=np.uint64), sizes, keys) for i in range(4)]
    drawn = [tuple(row) for row in np.stack(columns, axis=1).tolist()]
    counts = np.array([drawn.count(order) for order in permutations(range(4))])
    assert ((counts - 1000) ** 2 / 1000).sum() < 23 + 5 * np.sqrt(2 * 23)


@pytest.mark.parametrize("size", [33, 64, 65, 128, 1000])
def test_two_elements_fall_on_every_pair_of_places_equally_often(size):
    keys = mix(np.arange(60_000, dtype=np.uint64))
    sizes = np.full(len(keys), size, dtype=np.uint64)
    one, two = (
        permute(np.full(len(keys), i, dtype=np.uint64), sizes, keys).astype(int) * 32 // size
        for i in (size // 2, size - 1)
    )
    counts = np.bincount(one * 32 + two, minlength=1024).reshape(32, 32)
    widths = np.bincount(np.arange(size) * 32 // size, minlength=32)
    pairs = np.outer(widths, widths) - np.diag(widths)
    expected = len(keys) * pairs / (size * (size - 1))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert chi < freedom + 5 * np.sqrt(2 * freedom)


def test_any_position_of_a_huge_epoch_is_found_at_once():
    num_rows = np.full(64, 3 * 10**9)
    keys = np.full(64, 5, dtype=np.uint64)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        rows = epoch_row(np.arange(64) + 2 * 10**9, num_rows, keys)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.01
    assert len(set(rows.tolist())) == 64
    assert 0 <= rows.min() <= rows.max() < 3 * 10**9

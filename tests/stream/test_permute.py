import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.stream.permute import epoch_row, hash_key


def epoch(num_rows, key, block_rows):
    positions = np.arange(num_rows)
    keys = np.full(num_rows, key, dtype=np.uint64)
    return epoch_row(positions, np.full(num_rows, num_rows), keys, block_rows)


@given(num_rows=st.integers(1, 700), key=st.integers(0, 2**64 - 1), block_rows=st.integers(1, 900))
@settings(deadline=None, max_examples=200)
def test_an_epoch_has_every_row_once(num_rows, key, block_rows):
    assert sorted(epoch(num_rows, key, block_rows)) == list(range(num_rows))


def test_blocks_stay_together_and_are_shuffled_inside():
    rows = epoch(1000, hash_key("a"), 100)
    blocks = rows.reshape(10, 100) // 100
    assert (blocks == blocks[:, :1]).all()
    assert blocks[:, 0].tolist() != sorted(blocks[:, 0])
    assert all(np.diff(block).min() < 0 for block in rows.reshape(10, 100))


def test_keys_give_different_orders_that_look_random():
    orders = [epoch(1000, hash_key("epoch", e), 4096) for e in range(20)]
    correlations = np.corrcoef(orders)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 0.15  # 1 / sqrt(1000) = 0.03 is one standard deviation
    against_order = [np.corrcoef(order, np.arange(1000))[0, 1] for order in orders]
    assert np.abs(against_order).max() < 0.15
    # Each row comes first about equally often: no place is favoured.
    firsts = [int(epoch(8, hash_key("first", e), 4096)[0]) for e in range(800)]
    assert np.bincount(firsts, minlength=8).min() > 60


def test_any_position_of_a_huge_epoch_is_found_at_once():
    num_rows = np.full(64, 3 * 10**9)
    keys = np.full(64, 5, dtype=np.uint64)
    began = time.perf_counter()
    rows = epoch_row(np.arange(64) + 2 * 10**9, num_rows, keys)
    assert time.perf_counter() - began < 0.5
    assert len(set(rows.tolist())) == 64
    assert 0 <= rows.min() <= rows.max() < 3 * 10**9

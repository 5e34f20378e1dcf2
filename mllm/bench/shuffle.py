"""How well an epoch is shuffled: our block shuffle beside a full one and webdataset's buffer.

All hold about the same number of rows in reach (a buffer of 4,096; ours opens 32 blocks of 128).
webdataset's shards are shuffled too, as its users do; its own filter shuffles inside the buffer.
"""

import random
import time
from typing import Any

import numpy as np
import webdataset

from mllm.bench.machine import describe
from mllm.stream.permute import BLOCK_ROWS, BLOCKS_TOGETHER, epoch_row, hash_key

NUM_ROWS = 1_000_000
BATCH_ROWS = 256
SHARD_ROWS = 500  # 10,000 samples at 20 a row
REACH = BLOCK_ROWS * BLOCKS_TOGETHER
HUGE_ROWS, SMALL_BATCH, ROUNDS = 10**9, 64, 200


def quality(order: np.ndarray, batch_rows: int) -> dict[str, float]:
    """Figures of an epoch's order; a block is BLOCK_ROWS neighbours of the corpus.

    Args:
        order: int64 (R,), the row at each position.
        batch_rows: rows of a global batch.

    Returns:
        rank_correlation: of position and row; 0 for a full shuffle.
        neighbours_in_block: share of adjacent pairs from one block.
        median_distance: rows between adjacent ones, as a share of the corpus; 0.29 for a full
            shuffle.
        blocks_per_batch: mean number of distinct blocks in a batch.
        runs_in_reach: stretches of the corpus that REACH rows of the epoch come from: what is
            read, in as many pieces.
    """
    distances = np.abs(np.diff(order))
    blocks = order // BLOCK_ROWS
    batches = blocks[: len(order) // batch_rows * batch_rows].reshape(-1, batch_rows)
    distinct = (np.diff(np.sort(batches, axis=1), axis=1) > 0).sum(axis=1) + 1
    reaches = np.sort(order[: len(order) // REACH * REACH].reshape(-1, REACH), axis=1)
    return {
        "rank_correlation": float(np.corrcoef(order, np.arange(len(order)))[0, 1]),
        "neighbours_in_block": float((blocks[1:] == blocks[:-1]).mean()),
        "median_distance": float(np.median(distances)) / len(order),
        "blocks_per_batch": float(distinct.mean()),
        "runs_in_reach": float((np.diff(reaches, axis=1) > BLOCK_ROWS).sum(axis=1).mean() + 1),
    }


def run() -> dict[str, Any]:
    key = np.uint64(hash_key("shuffle"))
    orders = {
        "ours": epoch_row(np.arange(NUM_ROWS), NUM_ROWS, key),
        "webdataset, shards and buffer": _webdataset(shuffles_shards=True),
        "webdataset, buffer": _webdataset(shuffles_shards=False),
        "full": np.random.default_rng(0).permutation(NUM_ROWS),
    }
    return {
        "machine": describe("webdataset"),
        "rows": NUM_ROWS,
        "batch_rows": BATCH_ROWS,
        "reach": REACH,
        "sides": {name: quality(order, BATCH_ROWS) for name, order in orders.items()},
        "microseconds_per_batch": _lookup_seconds() * 1e6,
    }


def _webdataset(*, shuffles_shards: bool) -> np.ndarray:
    """webdataset's shuffle filter over rows in shards of SHARD_ROWS."""
    draws = random.Random(0)
    firsts = list(range(0, NUM_ROWS, SHARD_ROWS))
    if shuffles_shards:
        draws.shuffle(firsts)
    rows = (row for first in firsts for row in range(first, first + SHARD_ROWS))
    shuffled = webdataset.filters.shuffle(REACH, initial=REACH, rng=draws)(rows)
    return np.fromiter(shuffled, dtype=np.int64, count=NUM_ROWS)


def _lookup_seconds() -> float:
    """Median time to find SMALL_BATCH positions of an epoch of HUGE_ROWS."""
    draws = np.random.default_rng(0)
    seconds = []
    for _ in range(ROUNDS):
        positions = draws.integers(0, HUGE_ROWS, SMALL_BATCH)
        began = time.perf_counter()
        epoch_row(positions, HUGE_ROWS, np.uint64(7))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def lines(result: dict[str, Any]) -> list[str]:
    told = [
        f"{result['rows']:,} rows, batches of {result['batch_rows']}, reach of {result['reach']:,}"
    ]
    for name, side in result["sides"].items():
        told.append(
            f"{name}: rank correlation {side['rank_correlation']:+.4f}, "
            f"{side['neighbours_in_block']:.2%} of neighbours from one block, median distance "
            f"{side['median_distance']:.1%}, {side['blocks_per_batch']:.0f} blocks a batch, read "
            f"in {side['runs_in_reach']:,.0f} runs"
        )
    told.append(
        f"{result['microseconds_per_batch']:.0f} microseconds for {SMALL_BATCH} positions of "
        f"{HUGE_ROWS:,} rows"
    )
    return told

"""Stateless permutations: position in an epoch to row, in constant time and without a table.

A Feistel network over the next even power of two, walked until it lands inside (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002). The domain is under four times the size, so a walk
takes under four rounds on average.
"""

import hashlib

import numpy as np

# Rows that lie together in the plan stay together in an epoch up to this many: reads stay near each
# other, while any corpus of fewer rows is shuffled whole.
BLOCK_ROWS = 4096
FEISTEL_ROUNDS = 6


def hash_key(*parts: object) -> int:
    """64 bits from the text of `parts`."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(value: np.ndarray) -> np.ndarray:
    """A 64-bit bijective hash (splitmix64's finaliser), elementwise; uint64 to uint64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where `index` goes in a permutation of `size` elements chosen by `key`.

    Args:
        index: uint64 (N,), each below its `size`.
        size: uint64 (N,).
        key: uint64 (N,); equal keys and sizes, equal permutations.

    Returns:
        uint64 (N,)
    """
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1]  # exact below 2^53
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    round_keys = [mix(key + np.uint64(number)) for number in range(FEISTEL_ROUNDS)]
    result = index.copy()
    walking = np.arange(len(index))
    while len(walking):
        left, right = result[walking] >> half[walking], result[walking] & mask[walking]
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key[walking]) & mask[walking])
        result[walking] = (left << half[walking]) | right
        walking = walking[result[walking] >= size[walking]]
    return result


def epoch_row(
    position: np.ndarray,
    num_rows: np.ndarray | int,
    key: np.ndarray,
    block_rows: int = BLOCK_ROWS,
) -> np.ndarray:
    """The row of the plan at each position of an epoch: blocks are permuted, then rows in them.

    Args:
        position: int64 (N,), each in 0 .. num_rows - 1.
        num_rows: rows of the plan that each position belongs to: one number, or int64 (N,).
        key: uint64 (N,), one value per epoch.

    Returns:
        int64 (N,); over one epoch every row once.
    """
    position = position.astype(np.uint64)
    rows = np.uint64(block_rows)
    sizes = np.broadcast_to(np.asarray(num_rows, dtype=np.uint64), position.shape)
    num_full, short = np.divmod(sizes, rows)
    # The short last block takes a random place among the full ones, which are permuted.
    short_place = mix(key) % (num_full + np.uint64(1))
    short_start = short_place * rows
    is_short = (position >= short_start) & (position < short_start + short)
    shifted = np.where(position >= short_start + short, position - short, position)
    slot, offset = shifted // rows, shifted % rows
    full_slot = np.where(is_short, np.uint64(0), slot)
    full_size = np.maximum(num_full, np.uint64(1))
    block = np.where(is_short, num_full, permute(full_slot, full_size, mix(key ^ np.uint64(1))))
    offset = np.where(is_short, position - short_start, offset)
    block_size = np.where(is_short, short, rows)
    inside = permute(offset, block_size, mix(mix(key ^ np.uint64(2)) ^ block))
    return (block * rows + inside).astype(np.int64)

"""Stateless permutations: position in an epoch to row, in constant time and without a table.

The rows of a plan lie in blocks of BLOCK_ROWS neighbours. An epoch takes the blocks in random
order, BLOCKS_TOGETHER at a time, and mixes the rows of those thoroughly: rows that meet in a batch
come from all over the corpus, while reading touches some thousand rows at a time, in long runs.
Each epoch turns the ring of rows by a random amount first, so that neither the edges of the blocks
nor the short last block favour a row. A corpus of fewer rows than that is shuffled whole.
"""

import hashlib

import numpy as np

BLOCK_ROWS = 128
BLOCKS_TOGETHER = 32
SMALL = 32  # permutations of so many are drawn by rank
ROUNDS = 6  # fewer show in the joint places of two elements of 33 to 128 (chi square)
# Odd numbers without pattern (of splitmix64, xxHash, wyhash and others), one a round.
MULTIPLIERS = [
    np.uint64(number)
    for number in (
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0xD6E8FEB86659FD93,
        0xA0761D6478BD642F,
        0xE7037ED1A0B428DB,
        0x8EBC6AF09C88C6E3,
    )
]


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
        size: uint64 (N,), up to 2^40.
        key: uint64 (N,); equal keys and sizes, equal permutations.

    Returns:
        uint64 (N,)
    """
    is_small = size <= SMALL
    if is_small.all():
        return _permute_few(index, size, key)
    result = _permute_many(index, size, key)
    if is_small.any():
        result[is_small] = _permute_few(index[is_small], size[is_small], key[is_small])
    return result


def _permute_few(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The rank of the element among random numbers: every permutation is as likely."""
    elements = np.arange(SMALL, dtype=np.uint64)
    draws = mix(mix(key)[:, None] ^ elements)  # (N, SMALL)
    own = np.take_along_axis(draws, index.astype(np.int64)[:, None], axis=1)
    return ((draws < own) & (elements < size[:, None])).sum(axis=1, dtype=np.uint64)


def _permute_many(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Rounds of adding, multiplying by an odd number and shifting down are a permutation of the
    next power of two; they are repeated until the element lands below `size` (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002), under twice on average.
    """
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1].astype(np.uint64)
    key = mix(key)
    # The low bits of a product hang on the low bits of the key alone: take higher ones.
    rounds = [
        (
            (key ^ number) * MULTIPLIERS[0] >> np.uint64(24),
            key * number >> np.uint64(24) | np.uint64(1),
        )
        for number in MULTIPLIERS[:ROUNDS]
    ]
    mask, shift = (np.uint64(1) << bits) - np.uint64(1), (bits + np.uint64(1)) >> np.uint64(1)
    result = index.copy()
    walking = np.arange(len(index))
    while len(walking):
        value = result[walking]
        for summand, factor in rounds:
            value = (value + summand) * factor & mask
            value ^= value >> shift
        result[walking] = value
        stays = value >= size
        walking, size = walking[stays], size[stays]
        mask, shift = mask[stays], shift[stays]
        rounds = [(summand[stays], factor[stays]) for summand, factor in rounds]
    return result


def epoch_row(
    position: np.ndarray,
    num_rows: np.ndarray | int,
    key: np.ndarray | np.uint64,
    block_rows: int = BLOCK_ROWS,
    blocks_together: int = BLOCKS_TOGETHER,
) -> np.ndarray:
    """The row of the plan at each position of an epoch.

    Args:
        position: int64 (N,), each in 0 .. num_rows - 1.
        num_rows: rows of the plan that each position belongs to: one number, or int64 (N,).
        key: uint64 (N,) or one number; one value per epoch.

    Returns:
        int64 (N,); over one epoch every row once.
    """
    position = position.astype(np.uint64)
    length, key = (
        np.broadcast_to(np.asarray(array, dtype=np.uint64), position.shape)
        for array in (num_rows, key)
    )
    rows, one = np.uint64(block_rows), np.uint64(1)
    num_full = length // rows
    num_blocks = (length + rows - one) // rows
    # Groups of `blocks_together` blocks or a few more, so that none is short.
    num_groups = np.maximum(num_blocks // np.uint64(blocks_together), one)
    group = ((position // rows + one) * num_groups - one) // num_blocks
    begin = group * num_blocks // num_groups * rows
    end = np.minimum((group + one) * num_blocks // num_groups * rows, length)
    mixed = begin + permute(position - begin, end - begin, mix(key ^ np.uint64(2)) ^ group)
    # Which block stands there: any of the full ones; the short one stays last.
    place = mixed // rows
    is_full = place < num_full
    block = permute(
        np.where(is_full, place, np.uint64(0)), np.maximum(num_full, one), mix(key ^ one)
    )
    row = np.where(is_full, block, place) * rows + mixed % rows
    return ((row + mix(key) % length) % length).astype(np.int64)

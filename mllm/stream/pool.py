"""The packer's inner loop, compiled by numba: pieces wait in a pool, rows are filled from it.

Imported by `pack` alone, when a plan is made: numba costs a second that training need not wait for.
All of it is one file: numba caches by the date of the file that holds the outermost function.

A piece waits in a *slot*. Slots with equal cost form a queue, and all slots one list by age. Bit c
of a shelf is set where a piece of cost c waits, so the longest that fits is
found by a scan of a few words; bit `capacity - c` of MIRROR says the same, so that the two ANDed
at the right distance show every pair that fills a given room exactly.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

# Nothing is allocated inside, so references need not be counted: that alone took most of the time.
SETTINGS: dict[str, Any] = {"cache": True, "_nrt": False}
inlined = njit(**SETTINGS, forceinline=True)

POOL = 2048  # pieces that wait at most: a row's documents lie about this near each other
NUM_OLDEST = 4  # of these, one may be taken so that two others fill the row exactly
NONE = -1

# Shelves: what must stay whole, and texts that may be cut. MIRROR stands for both.
WHOLE, TEXT, MIRROR = 0, 1, 2
FIRST, LAST = 0, 1  # ends of a queue
# Where `Pool.state` keeps its integers.
NUM_WAITING, OLDEST, NEWEST, NUM_FREE = 0, 1, 2, 3
DOCUMENT, START, FIRST_IMAGE = 4, 5, 6  # where reading the window goes on
NUM_ROWS, NUM_PIECES, NUM_CUTS = 7, 8, 9  # of the rows not yet handed over


SLOT = np.dtype(
    [
        ("sample", np.int64),
        ("start", np.int64),  # first token of the document
        ("stop", np.int64),  # one past the last
        ("is_end", np.bool_),  # the document ends with it
        ("shelf", np.int64),
        ("cost", np.int64),  # positions it takes in a row
        ("images", np.int64),
        ("next_equal", np.int64),  # slot behind it in the queue of its cost
        ("older", np.int64),
        ("newer", np.int64),
    ]
)
ROW = np.dtype(
    [("images", np.int32), ("tokens", np.int32), ("pieces", np.int32), ("cuts", np.int32)]
)
CUT = np.dtype([("place", np.int64), ("start", np.int64), ("stop", np.int64)])


class Pool(NamedTuple):
    """Waiting pieces of one kind of row; C = capacity."""

    state: np.ndarray  # int64 (10,)
    slots: np.ndarray  # SLOT (POOL,)
    free: np.ndarray  # int64 (POOL,), the first NUM_FREE are empty slots
    queues: np.ndarray  # int64 (2, 2, C + 1), first and last slot for each shelf and cost
    waiting: np.ndarray  # int64 (C + 1,), pieces of each cost on both shelves
    bits: np.ndarray  # uint64 (3, W), costs that wait: WHOLE, TEXT, MIRROR
    in_row: np.ndarray  # int64 (C + 1,), slots of the row being filled


class Rows(NamedTuple):
    """Filled rows that are not yet handed over."""

    rows: np.ndarray  # ROW
    samples: np.ndarray  # int64, of every piece
    cuts: np.ndarray  # CUT


class Window(NamedTuple):
    """n consecutive documents, of which some are meant for this kind of row."""

    first_sample: int
    is_mine: np.ndarray  # bool (n,)
    text_tokens: np.ndarray  # uint32 (n,)
    num_images: np.ndarray  # uint16 or uint32 (n,)
    image_offsets: np.ndarray  # uint32, of all n


def new_pool(capacity: int) -> Pool:
    state = np.zeros(10, dtype=np.int64)
    state[OLDEST] = state[NEWEST] = NONE
    state[NUM_FREE] = POOL
    return Pool(
        state=state,
        slots=np.zeros(POOL, dtype=SLOT),
        free=np.arange(POOL),
        queues=np.full((2, 2, capacity + 1), NONE),
        waiting=np.zeros(capacity + 1, dtype=np.int64),
        bits=np.zeros((3, capacity // 64 + 1), dtype=np.uint64),
        in_row=np.zeros(capacity + 1, dtype=np.int64),
    )


def new_rows(capacity: int) -> Rows:
    """Room for some thousand rows, and always for two of `capacity` pieces."""
    num_pieces = max(65_536, 2 * capacity + 2)
    return Rows(
        np.zeros(4096, dtype=ROW), np.zeros(num_pieces, dtype=np.int64), np.zeros(num_pieces, CUT)
    )


# ------------------------------------------------------------------ documents to pieces


@njit(**SETTINGS)
def pack_window(pool, rows, window, capacity, slack, span, is_joined, is_last):
    """Goes on with a window until it is used up (True) or `rows` are full (False).

    Rows are filled while the pool is full; with `is_last`, until it is empty.
    """
    state = pool.state
    for i in range(state[DOCUMENT], len(window.text_tokens)):
        num_images = np.int64(window.num_images[i])
        length = np.int64(window.text_tokens[i]) + num_images * span
        if window.is_mine[i]:
            while state[START] < length:
                if not _has_room(rows, state, capacity):
                    state[DOCUMENT] = i
                    return False
                first_image = state[FIRST_IMAGE]
                offsets = window.image_offsets[first_image : first_image + num_images]
                _add_piece(
                    pool, rows, window.first_sample + i, length, offsets, capacity, span, is_joined
                )
                if state[NUM_FREE] == 0:
                    _fill_row(pool, rows, capacity, slack, is_joined)
        state[START] = 0
        state[FIRST_IMAGE] += num_images
    state[DOCUMENT] = len(window.text_tokens)
    while is_last and state[NUM_WAITING] > 0:
        if not _has_room(rows, state, capacity):
            return False
        _fill_row(pool, rows, capacity, slack, is_joined)
    state[DOCUMENT] = state[FIRST_IMAGE] = 0
    return True


@inlined
def _has_room(rows, state, capacity):
    """Whether two more rows can be written: a full piece, and one from the pool."""
    return state[NUM_ROWS] + 2 <= len(rows.rows) and state[NUM_PIECES] + capacity + 1 <= len(
        rows.samples
    )


@inlined
def _add_piece(pool, rows, sample, length, image_offsets, capacity, span, is_joined):
    """Takes the next piece of a document, and puts it into the pool unless it fills a row."""
    start = pool.state[START]
    # In a joined row the document's own <s> costs nothing: the row brings one.
    limit = start + capacity + (is_joined and start == 0)
    stop = min(length, limit)
    num_images = 0
    for k in range(len(image_offsets)):
        position = np.int64(image_offsets[k]) + k * span
        # Not right after <s>, which would stand alone. Positions ascend: the last within reach.
        if start + (start == 0) < position <= limit and length > limit:
            stop = position
    for k in range(len(image_offsets)):
        num_images += start <= np.int64(image_offsets[k]) + k * span < stop
    is_end = stop == length
    cost = stop - start
    if is_joined:
        cost += (not is_end) - (start == 0)  # the dividing </s>, the <s> that falls away
    cost = min(max(cost, 1), capacity)  # a piece that fills a row needs no divider

    pool.state[NUM_FREE] -= 1
    slot = pool.free[pool.state[NUM_FREE]]
    pool.slots[slot].sample, pool.slots[slot].start, pool.slots[slot].stop = sample, start, stop
    pool.slots[slot].is_end, pool.slots[slot].images, pool.slots[slot].cost = (
        is_end,
        num_images,
        cost,
    )
    # Only the last piece of a document may be cut again: every piece but it already ends where
    # the next begins.
    pool.slots[slot].shelf = TEXT if is_end and num_images == 0 else WHOLE
    pool.state[START] = stop
    if cost == capacity:
        pool.in_row[0] = slot
        _write_row(pool, rows, 1, NONE, 0, is_joined)
        _free(pool, slot)
    else:
        _enqueue(pool, slot)
        _set_newest(pool, slot)


# ------------------------------------------------------------------ pieces to rows


@inlined
def _fill_row(pool, rows, capacity, slack, is_joined):
    room = capacity
    num_pieces = 0
    cost = _longest(pool, room)
    if 2 * cost <= capacity:
        cost = pool.slots[pool.state[OLDEST]].cost
    while cost >= 0:
        slot = _take(pool, cost, WHOLE if pool.queues[FIRST, WHOLE, cost] != NONE else TEXT)
        pool.in_row[num_pieces] = slot
        num_pieces += 1
        room -= cost
        cost = _choose(pool, room, capacity) if room > 0 else NONE
    _sort(pool, num_pieces)
    cut_slot = NONE
    if room > slack:
        cut_slot = _text_to_cut(pool, room, slack)
    _write_row(pool, rows, num_pieces, cut_slot, room, is_joined)
    for place in range(num_pieces):
        _free(pool, pool.in_row[place])
    if cut_slot != NONE:
        # The tail waits as the oldest, so that it stands near its head.
        pool.slots[cut_slot].start = pool.slots[cut_slot].stop - pool.slots[cut_slot].cost + room
        pool.slots[cut_slot].cost -= room
        _enqueue(pool, cut_slot)
        _set_oldest(pool, cut_slot)


@inlined
def _choose(pool, room, capacity):
    """The cost of the piece that a row with `room` left takes next, or NONE."""
    longest = _longest(pool, room)
    if longest in (NONE, room):
        return longest
    oldest = pool.state[OLDEST]
    if 2 * longest <= room and pool.slots[oldest].cost <= room:
        return pool.slots[oldest].cost
    pair = _pair(pool, room, NONE, capacity)
    if pair != NONE:
        return pair
    slot = oldest
    for _ in range(NUM_OLDEST):
        if slot == NONE:
            break
        cost = pool.slots[slot].cost
        if cost < room and _pair(pool, room - cost, cost, capacity) != NONE:
            return cost
        slot = pool.slots[slot].newer
    return longest


@inlined
def _longest(pool, room):
    """The highest cost up to `room` that waits, or NONE."""
    word = room >> 6
    bits = pool.bits[WHOLE][word] | pool.bits[TEXT][word]
    bits &= ~np.uint64(0) >> np.uint64(63 - (room & 63))
    while bits == 0 and word > 0:
        word -= 1
        bits = pool.bits[WHOLE][word] | pool.bits[TEXT][word]
    return word * 64 + _highest_bit(bits)


@inlined
def _pair(pool, room, reserved, capacity):
    """The larger of two waiting costs that sum to `room`, or NONE; one `reserved` is not counted.

    Bit `room - c` of the costs is bit c of the mirrored costs moved by `capacity - room`.
    """
    distance = capacity - room
    words, shift = distance >> 6, np.uint64(distance & 63)
    word = room >> 6
    while word >= ((room + 1) // 2) >> 6:
        bits = np.uint64(0)
        if word + words < len(pool.bits[MIRROR]):
            bits = pool.bits[MIRROR][word + words] >> shift
        if shift > 0 and word + words + 1 < len(pool.bits[MIRROR]):
            bits |= pool.bits[MIRROR][word + words + 1] << (np.uint64(64) - shift)
        bits &= pool.bits[WHOLE][word] | pool.bits[TEXT][word]
        while bits != 0:
            large = word * 64 + _highest_bit(bits)
            small = room - large
            if small > large:
                return NONE
            num_large = pool.waiting[large] - (large == reserved) - (large == small)
            num_small = pool.waiting[small] - (small == reserved)
            if small > 0 and num_large > 0 and num_small > 0:
                return large
            bits &= ~(np.uint64(1) << np.uint64(large & 63))
        word -= 1
    return NONE


@inlined
def _text_to_cut(pool, room, slack):
    """Takes the longest waiting text, if its tail would be longer than `slack`; else NONE."""
    word = len(pool.bits[TEXT]) - 1
    while pool.bits[TEXT][word] == 0 and word > 0:
        word -= 1
    cost = word * 64 + _highest_bit(pool.bits[TEXT][word])
    if cost - room <= slack:
        return NONE
    return _take(pool, cost, TEXT)


@inlined
def _sort(pool, num_pieces):
    """Puts the row's pieces in the order of the corpus; they nearly are."""
    in_row = pool.in_row
    for place in range(1, num_pieces):
        slot = in_row[place]
        while place > 0 and (pool.slots[slot].sample, pool.slots[slot].start) < (
            pool.slots[in_row[place - 1]].sample,
            pool.slots[in_row[place - 1]].start,
        ):
            in_row[place] = in_row[place - 1]
            place -= 1
        in_row[place] = slot


@inlined
def _write_row(pool, rows, num_pieces, cut_slot, room, is_joined):
    """Writes the slots `in_row`, then the first `room` positions of `cut_slot` if there is one."""
    state = pool.state
    row, first_cut = state[NUM_ROWS], state[NUM_CUTS]
    rows.rows[row].images = 0
    rows.rows[row].tokens = is_joined
    for place in range(num_pieces + (cut_slot != NONE)):
        is_head = place == num_pieces
        slot = cut_slot if is_head else pool.in_row[place]
        start, stop = pool.slots[slot].start, pool.slots[slot].stop
        if is_head:
            stop += room - pool.slots[slot].cost
        rows.samples[state[NUM_PIECES]] = pool.slots[slot].sample
        state[NUM_PIECES] += 1
        rows.rows[row].images += pool.slots[slot].images
        rows.rows[row].tokens += stop - start
        if is_joined:
            is_within = place + 1 < num_pieces + (cut_slot != NONE)
            rows.rows[row].tokens += (is_within and not pool.slots[slot].is_end) - (start == 0)
        if start > 0 or is_head or not pool.slots[slot].is_end:
            rows.cuts[state[NUM_CUTS]].place = place
            rows.cuts[state[NUM_CUTS]].start = start
            rows.cuts[state[NUM_CUTS]].stop = stop
            state[NUM_CUTS] += 1
    rows.rows[row].pieces = num_pieces + (cut_slot != NONE)
    rows.rows[row].cuts = state[NUM_CUTS] - first_cut
    state[NUM_ROWS] += 1


# ------------------------------------------------------------------ queues, ages, bits


@inlined
def _enqueue(pool, slot):
    shelf, cost = pool.slots[slot].shelf, pool.slots[slot].cost
    pool.slots[slot].next_equal = NONE
    if pool.queues[FIRST, shelf, cost] == NONE:
        pool.queues[FIRST, shelf, cost] = slot
        _flip(pool.bits[shelf], cost)
        if pool.waiting[cost] == 0:
            _flip(pool.bits[MIRROR], len(pool.waiting) - 1 - cost)
    else:
        pool.slots[pool.queues[LAST, shelf, cost]].next_equal = slot
    pool.queues[LAST, shelf, cost] = slot
    pool.waiting[cost] += 1
    pool.state[NUM_WAITING] += 1


@inlined
def _take(pool, cost, shelf):
    """Takes the first slot out of a queue, and out of the list by age."""
    slot = pool.queues[FIRST, shelf, cost]
    pool.queues[FIRST, shelf, cost] = pool.slots[slot].next_equal
    pool.waiting[cost] -= 1
    pool.state[NUM_WAITING] -= 1
    if pool.queues[FIRST, shelf, cost] == NONE:
        _flip(pool.bits[shelf], cost)
        if pool.waiting[cost] == 0:
            _flip(pool.bits[MIRROR], len(pool.waiting) - 1 - cost)
    older, newer = pool.slots[slot].older, pool.slots[slot].newer
    if older == NONE:
        pool.state[OLDEST] = newer
    else:
        pool.slots[older].newer = newer
    if newer == NONE:
        pool.state[NEWEST] = older
    else:
        pool.slots[newer].older = older
    return slot


@inlined
def _set_newest(pool, slot):
    newest = pool.state[NEWEST]
    pool.slots[slot].older, pool.slots[slot].newer = newest, NONE
    pool.state[NEWEST] = slot
    if newest == NONE:
        pool.state[OLDEST] = slot
    else:
        pool.slots[newest].newer = slot


@inlined
def _set_oldest(pool, slot):
    oldest = pool.state[OLDEST]
    pool.slots[slot].older, pool.slots[slot].newer = NONE, oldest
    pool.state[OLDEST] = slot
    if oldest == NONE:
        pool.state[NEWEST] = slot
    else:
        pool.slots[oldest].older = slot


@inlined
def _free(pool, slot):
    pool.free[pool.state[NUM_FREE]] = slot
    pool.state[NUM_FREE] += 1


@inlined
def _flip(bits, place):
    bits[place >> 6] ^= np.uint64(1) << np.uint64(place & 63)


@inlined
def _highest_bit(bits):
    """Number of the highest set bit, or -1."""
    place = -1
    for step in (32, 16, 8, 4, 2, 1):
        if bits >> np.uint64(step):
            bits >>= np.uint64(step)
            place += step
    return place + (bits != 0)

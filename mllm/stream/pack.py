"""Packing, planned once from lengths alone: row -> pieces (sample, start, stop).

The plan knows no seed, epoch or world size. It goes over the corpus in windows of WINDOW samples.
In each it fills one row after another: while two of the longest piece that fits would fit, it takes
the commonest length, which keeps lengths varied to the end; then pieces that fill the rest exactly
(one, or two together); else the longest that fits. What is left over joins the next window.

A document that fits a row stays whole, unless nothing else fits: if the rest of a row is more than
`seq_len / 64`, it takes the head of a text, and the tail of it goes into a later row. A document
longer than a row is cut into continued pieces, at an image where there is one within reach, else at
a token. An image is never cut. A continued piece opens without `<s>`, its first token is not
scored (what it follows from stands in another row), and positions start again with it.

In a *joined* row the documents are one context: one `<s>`, then the documents without theirs, each
closed by `</s>`. A piece that stops before its document's end is divided from the next by a `</s>`
that is not scored.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from mllm.errors import UserError
from mllm.stream.encode import image_span
from mllm.stream.lengths import TokenLengths
from mllm.stream.plan import PackedRows

WINDOW = 16_384  # samples


def pack(
    lengths: TokenLengths, *, seq_len: int, num_latents: int, join_share: float = 0.0
) -> Iterator[PackedRows]:
    """Packs N documents into rows of `seq_len`, window by window; a pure function.

    Args:
        lengths: a document of 0 tokens is left out.
        join_share: share of the rows that are joined, 0 .. 1.
    """
    span = image_span(num_latents)
    if span >= seq_len:  # a joined row needs one more, for its <s>
        raise UserError(
            f"model.num_latents {num_latents}: an image takes {span} positions and a row has "
            f"model.seq_len {seq_len}; lower the one or raise the other"
        )
    plain = _Packer(seq_len, seq_len, is_joined=False)
    joined = _Packer(seq_len - 1, seq_len, is_joined=True)
    for first in range(0, lengths.num_samples, WINDOW):
        window = np.arange(first, min(first + WINDOW, lengths.num_samples))
        costs = lengths.text_tokens[window] + lengths.images.counts[window].astype(np.int64) * span
        window, costs = window[costs > 0], costs[costs > 0]
        is_in_joined = _every_nth(costs, join_share)
        is_last = first + WINDOW >= lengths.num_samples
        for packer, mine in ((plain, ~is_in_joined), (joined, is_in_joined)):
            for sample, length in zip(window[mine].tolist(), costs[mine].tolist(), strict=True):
                images = lengths.image_positions(sample, num_latents).tolist()
                packer.add(sample, length, images)
            rows = packer.fill_rows(is_last=is_last)
            yield _to_arrays(rows, packer.is_joined, lengths, num_latents)


def _every_nth(lengths: np.ndarray, share: float) -> np.ndarray:
    """Bool (N,): that share of the documents, spread over long and short ones alike."""
    ranks = np.empty(len(lengths), dtype=np.int64)
    ranks[np.argsort(lengths, kind="stable")] = np.arange(len(lengths))
    return np.floor((ranks + 1) * share) > np.floor(ranks * share)


_Piece = tuple[int, int, int]  # sample, start, stop


class _Packer:
    """Pieces waiting for rows, in queues by the positions they cost."""

    def __init__(self, capacity: int, seq_len: int, *, is_joined: bool) -> None:
        self.capacity = capacity
        self.is_joined = is_joined
        self._slack = max(1, seq_len // 64)  # padding that is not worth a cut
        self._waiting = 0  # positions of all queued pieces
        # Two shelves: pieces that must stay whole, and texts that may be cut.
        # Bit c of a shelf's mask is set where its queue for cost c is not empty.
        self._queues: list[list[deque[_Piece]]] = [
            [deque() for _ in range(capacity + 1)] for _ in range(2)
        ]
        self._masks = [0, 0]
        self._counts = np.zeros(capacity + 1, dtype=np.int64)  # both queues for each cost
        self._mirror = 0  # bit (capacity - c) is set where either queue for cost c is not empty

    def add(self, sample: int, length: int, images: Sequence[int]) -> None:
        """Queues a document; `images` are the token positions of its images."""
        start = 0
        while start < length:
            # In a joined row the document's own <s> costs nothing: the row brings one.
            limit = start + self.capacity + (self.is_joined and start == 0)
            stop = length
            if length > limit:
                stop = max((p for p in images if start < p <= limit), default=limit)
            has_images = bool(images) and any(start <= p < stop for p in images)
            self._queue((sample, start, stop), is_end=stop == length, is_text=not has_images)
            start = stop

    def _queue(self, piece: _Piece, *, is_end: bool, is_text: bool) -> None:
        _, start, stop = piece
        cost = stop - start
        if self.is_joined:
            cost += (not is_end) - (start == 0)  # the dividing </s>, the <s> that falls away
        # A piece that fills a row needs no divider. Only the last piece of a document may be cut
        # again: every piece but it already ends where the next begins.
        cost = min(cost, self.capacity)
        shelf = int(is_text and is_end)
        self._queues[shelf][cost].append(piece)
        self._masks[shelf] |= 1 << cost
        self._mirror |= 1 << (self.capacity - cost)
        self._counts[cost] += 1
        self._waiting += cost

    def fill_rows(self, *, is_last: bool) -> list[list[_Piece]]:
        """Rows from what waits; unless `is_last`, what would not fill a row waits on."""
        rows = []
        while self._waiting >= (1 if is_last else self.capacity):
            rows.append(self._fill_row())
        return rows

    def _fill_row(self) -> list[_Piece]:
        row: list[_Piece] = []
        room = self.capacity
        while room > 0:
            mask = self._masks[0] | self._masks[1]
            fitting = mask & ((1 << (room + 1)) - 1)
            if not fitting:
                break
            cost = fitting.bit_length() - 1
            if 2 * cost <= room:
                cost = int(self._counts[: room + 1].argmax())
            elif row and cost < room:
                # Costs whose complement to `room` waits as well: two pieces fill the row exactly.
                pairs = fitting & (self._mirror >> (self.capacity - room))
                if pairs:
                    cost = pairs.bit_length() - 1
                    if 2 * cost == room and self._counts[cost] < 2:
                        cost = fitting.bit_length() - 1
            row.append(self._take(cost, shelf=int(not self._masks[0] >> cost & 1)))
            room -= cost
        row.sort()
        if room > self._slack and (head := self._cut(room)):
            row.append(head)
        return row

    def _take(self, cost: int, shelf: int) -> _Piece:
        queue = self._queues[shelf][cost]
        piece = queue.popleft()
        self._counts[cost] -= 1
        self._waiting -= cost
        if not queue:
            self._masks[shelf] &= ~(1 << cost)
            if self._counts[cost] == 0:
                self._mirror &= ~(1 << (self.capacity - cost))
        return piece

    def _cut(self, room: int) -> _Piece | None:
        """The head of the longest text, `room` positions of it; its tail waits on."""
        cost = self._masks[1].bit_length() - 1
        if cost - room <= self._slack:
            return None
        sample, start, stop = self._take(cost, shelf=1)
        middle = stop - cost + room
        self._queue((sample, middle, stop), is_end=True, is_text=True)
        return sample, start, middle


def _to_arrays(
    rows: list[list[_Piece]], is_joined: bool, lengths: TokenLengths, num_latents: int
) -> PackedRows:
    row_images: list[int] = []
    row_tokens: list[int] = []
    cuts = []
    for row in rows:
        used = num_images = 0
        for place, (sample, start, stop) in enumerate(row):
            is_whole_end = stop == lengths.length(sample, num_latents)
            positions = lengths.image_positions(sample, num_latents)
            num_images += int(((positions >= start) & (positions < stop)).sum())
            used += stop - start - (is_joined and start == 0)
            used += is_joined and not is_whole_end and place + 1 < len(row)
            if start or not is_whole_end:
                cuts.append((len(row_images), place, start, stop))
        row_images.append(num_images)
        row_tokens.append(used + is_joined)
    cut_rows, *cut_columns = np.array(cuts, dtype=np.int64).reshape(-1, 4).T
    return PackedRows(
        np.full(len(rows), is_joined),
        np.array(row_images, dtype=np.int32),
        np.array(row_tokens, dtype=np.int32),
        np.array([len(row) for row in rows], dtype=np.int64),
        np.bincount(cut_rows, minlength=len(rows)),
        np.array([sample for row in rows for sample, _, _ in row], dtype=np.int64),
        *cut_columns,
    )

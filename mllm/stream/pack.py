"""Packing, planned once from lengths alone: documents to rows of pieces (sample, start, stop).

The plan knows no seed, epoch, world size or number of processes. Documents stream, in the order of
the corpus, through a pool of POOL waiting pieces. Whenever it is full one row is filled:

1. The longest piece that waits opens the row if it takes more than half of it; such pieces must
   each have a row of their own, so they never pile up. Else the oldest opens it.
2. While two of the longest piece that fits would fit, the oldest goes in: any will do, and this
   keeps the documents of a row near each other on disk.
3. Then pieces that fill the rest exactly: one, or two, or one of the four oldest and two more.
4. Else the longest that fits.

A document that fits a row stays whole, unless nothing else fits: if the rest of a row is more than
`seq_len / 64`, it takes the head of the longest text, and the tail of it goes into a later row. A
document longer than a row is cut into continued pieces, at an image where there is one within
reach (but never right after `<s>`), else at a token. An image is never cut. A continued piece opens
without `<s>`, its first token is not scored (what it follows from stands in another row), and
positions start again with it.

In a *joined* row the documents are one context: one `<s>`, then the documents without theirs, each
closed by `</s>`. A piece that stops before its document's end is divided from the next by a `</s>`
that is not scored. Joined rows have a pool of their own.
"""

from collections.abc import Iterator

import numpy as np

from corpora.ragged import BLOCK
from mllm.command import progress
from mllm.errors import UserError
from mllm.stream import pool
from mllm.stream.encode import image_span
from mllm.stream.lengths import TokenLengths
from mllm.stream.plan import PackedRows

WINDOW = 16 * BLOCK  # samples read at a time; joined ones are chosen within it


def pack(
    lengths: TokenLengths, *, seq_len: int, num_latents: int, join_share: float = 0.0
) -> Iterator[PackedRows]:
    """Packs N documents into rows of `seq_len`: a pure function, in memory that N does not change.

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
    slack = max(1, seq_len // 64)  # padding that is not worth a cut
    kinds = [
        (is_joined, capacity, pool.new_pool(capacity), pool.new_rows(capacity))
        for is_joined, capacity in ((False, seq_len), (True, seq_len - 1))
    ]
    for first in progress(range(0, lengths.num_samples, WINDOW), f"packing {WINDOW:,} documents"):
        stop = min(first + WINDOW, lengths.num_samples)
        text_tokens = np.asarray(lengths.text_tokens[first:stop])
        num_images = np.asarray(lengths.images.counts[first:stop])
        images = slice(lengths.images.span(first)[0], lengths.images.span(stop - 1)[1])
        image_offsets = np.asarray(lengths.image_offsets[images])
        is_in_joined = _every_nth(text_tokens + num_images.astype(np.int64) * span, join_share)
        for is_joined, capacity, waiting, rows in kinds:
            is_mine = is_in_joined if is_joined else ~is_in_joined
            window = pool.Window(first, is_mine, text_tokens, num_images, image_offsets)
            is_done = False
            while not is_done:
                is_done = pool.pack_window(
                    waiting,
                    rows,
                    window,
                    capacity,
                    slack,
                    span,
                    is_joined,
                    stop == lengths.num_samples,
                )
                yield _hand_over(waiting, rows, is_joined)


def _every_nth(lengths: np.ndarray, share: float) -> np.ndarray:
    """Bool (N,): that share of the documents, spread over long and short ones alike."""
    if share in (0, 1):
        return np.full(len(lengths), share == 1)
    ranks = np.empty(len(lengths), dtype=np.int64)
    ranks[np.argsort(lengths, kind="stable")] = np.arange(len(lengths))
    return np.floor((ranks + 1) * share) > np.floor(ranks * share)


def _hand_over(waiting: pool.Pool, rows: pool.Rows, is_joined: bool) -> PackedRows:
    """The filled rows, copied; `rows` is empty after."""
    state = waiting.state
    table = rows.rows[: state[pool.NUM_ROWS]].copy()
    samples = rows.samples[: state[pool.NUM_PIECES]].copy()
    cuts = rows.cuts[: state[pool.NUM_CUTS]].copy()
    state[pool.NUM_ROWS] = state[pool.NUM_PIECES] = state[pool.NUM_CUTS] = 0
    return PackedRows(
        is_joined=np.full(len(table), is_joined),
        row_images=table["images"],
        row_tokens=table["tokens"],
        row_pieces=table["pieces"],
        row_cuts=table["cuts"],
        piece_samples=samples,
        cut_places=cuts["place"],
        cut_starts=cuts["start"],
        cut_stops=cuts["stop"],
    )

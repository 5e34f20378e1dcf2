"""Documents as (text tokens, offsets of images), and their lengths and plans without any disk."""

import numpy as np

from corpora.ragged import Ragged
from mllm.stream.lengths import TokenLengths
from mllm.stream.pack import pack


def lengths_of(documents) -> TokenLengths:
    """What measuring such documents would give; image offsets are put within 1 .. tokens - 1."""
    offsets = [sorted(1 + o % max(1, n - 1) for o in images) for n, images in documents]
    return TokenLengths(
        text_tokens=np.array([n for n, _ in documents], dtype=np.uint32),
        images=Ragged.from_counts(np.array([len(row) for row in offsets], dtype=np.int64)),
        image_offsets=np.array([o for row in offsets for o in row], dtype=np.uint32),
        total_text_tokens=sum(n for n, _ in documents),
        total_scored_tokens=0,
        num_dropped=sum(n == 0 for n, _ in documents),
        dropped={},
    )


def packed_rows(lengths, **sizes):
    """[(is joined, images, tokens, [(sample, start, stop)])] of every row, from the packer."""
    rows = []
    for part in pack(lengths, **sizes):
        samples = iter(part.piece_samples.tolist())
        columns = (part.cut_places, part.cut_starts, part.cut_stops)
        cuts = iter(zip(*(column.tolist() for column in columns), strict=True))
        for row in range(len(part.is_joined)):
            pieces = []
            for _ in range(part.row_pieces[row]):
                sample = next(samples)
                pieces.append((sample, 0, lengths.length(sample, sizes["num_latents"])))
            for _ in range(part.row_cuts[row]):
                place, start, stop = next(cuts)
                pieces[place] = (pieces[place][0], start, stop)
            rows.append(
                (
                    bool(part.is_joined[row]),
                    int(part.row_images[row]),
                    int(part.row_tokens[row]),
                    pieces,
                )
            )
        assert next(samples, None) is next(cuts, None) is None
    return rows

"""What a stream has planned, in numbers: padding, cuts, drops and shares of each source."""

from typing import Any

import numpy as np

from mllm.stream.deal import image_balance
from mllm.stream.source import PlannedSource
from mllm.stream.stream import TokenStream

BALANCE_STEPS = 16  # over which the image balance is averaged


def describe(stream: TokenStream, *, world_size: int, micro_batch_size: int) -> dict[str, Any]:
    """The last segment of the stream, as `mllm stream show --describe` prints it.

    Padding, truncated, dropped and masked stand beside each other: together they are all that a
    corpus has and training does not see. Nothing is ever truncated: documents longer than a row
    go on in another, each such cut counted, and the first token of such a piece is not scored.
    """
    segment = stream.state.segments[-1]
    row_shares = stream.order.mixtures[-1].shares
    by_name = {source.name: source for source in stream.sources}
    sources = [by_name[record.name] for record in segment.sources]
    tokens_per_row = np.array([s.counted_tokens / s.plan.num_rows for s in sources])
    padding = np.array([s.plan.num_padding / (s.plan.num_rows * stream.seq_len) for s in sources])
    token_shares = row_shares * tokens_per_row
    token_shares /= max(1e-9, token_shares.sum())
    steps = [stream.rows(step) for step in range(BALANCE_STEPS)]
    balance = [
        image_balance(step.num_images, step.order.source_ids, world_size, micro_batch_size)
        for step in steps
        if step.num_images.any()
    ]
    return {
        "fingerprint": stream.fingerprint,
        "padding": round(float(row_shares @ padding), 6),
        "period": stream.order.mixtures[-1].period,
        "segments": len(stream.state.segments),
        "excluded_steps": [list(window) for window in stream.state.excluded_steps],
        "image_balance": {
            "world_size": world_size,
            "max_over_mean": round(float(np.mean(balance)), 4) if balance else None,
        },
        "sources": {
            source.name: {
                **_planned(source),
                "padding": round(float(padding[i]), 6),
                "tokens_per_row": round(float(tokens_per_row[i]), 6),
                "row_share": round(float(row_shares[i]), 6),
                "token_share": round(float(token_shares[i]), 6),
            }
            for i, source in enumerate(sources)
        },
    }


def _planned(source: PlannedSource) -> dict[str, int]:
    plan, lengths = source.plan, source.lengths
    excluded = [source.length(sample) for sample in source.excluded.tolist()]
    return {
        "samples": len(source.corpus),
        "tokens": lengths.total_text_tokens + lengths.total_images * source.image_span,
        "padding_tokens": plan.num_padding,
        "truncated_tokens": 0,
        "dropped": lengths.num_dropped,
        "masked": len(excluded),  # by takedown lists; broken samples show when they are read
        "masked_tokens": sum(excluded),
        "cuts": plan.num_cuts,
        "rows_per_epoch": plan.num_rows,
        "joined_rows": plan.num_joined,
        "images_per_epoch": plan.total_images,
    }

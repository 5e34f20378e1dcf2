"""Attention of packed rows: our rectangles beside a dense mask and torch's FlexAttention.

Forward and backward, but FlexAttention forward alone: on CPU it has no backward pass, which is why
it is not a backend.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mllm.bench import _twins
from mllm.bench.machine import describe, interleaved
from mllm.bench.train_speed import pack
from mllm.model.attention import Documents, attention

ROUNDS = 5
ROWS, HEADS, HEAD_DIM = 4, 4, 64


def run() -> dict[str, Any]:
    config = _twins.geometry()
    rows = pack(_twins.documents(96, config), config.seq_len)[-ROWS:]
    document_ids = torch.full((ROWS, config.seq_len), -1)
    for i, row in enumerate(rows):
        lengths = torch.tensor([len(d.token_ids) for d in row])
        document_ids[i, : int(lengths.sum())] = torch.arange(len(row)).repeat_interleave(lengths)
    shape = (ROWS, config.seq_len, HEADS, HEAD_DIM)
    inputs = [torch.randn(shape, dtype=_twins.dtype(), requires_grad=True) for _ in range(3)]
    documents = Documents(document_ids)
    same = document_ids[:, :, None] == document_ids[:, None]  # (B, T, T)
    mask = same.tril()[:, None]

    def dense() -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in inputs)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    def packed() -> torch.Tensor:
        return attention(*inputs, documents=documents)

    def is_seen(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (document_ids[b, q] == document_ids[b, k]) & (k <= q)

    block_mask = create_block_mask(
        is_seen, ROWS, None, config.seq_len, config.seq_len, device="cpu"
    )
    compiled = torch.compile(flex_attention)

    def flex() -> torch.Tensor:
        q, k, v = (x.detach().transpose(1, 2) for x in inputs)
        return compiled(q, k, v, block_mask=block_mask).transpose(1, 2)

    def forward(work: Callable[[], torch.Tensor]) -> Callable[[], float]:
        def once() -> float:
            with torch.no_grad():
                work()
            return document_ids.numel()

        return once

    def both(work: Callable[[], torch.Tensor]) -> Callable[[], float]:
        def once() -> float:
            torch.autograd.grad(work().sum(), inputs)
            return document_ids.numel()

        return once

    sides = {
        "ours, forward": forward(packed),
        "dense mask, forward": forward(dense),
        "ours, both": both(packed),
        "dense mask, both": both(dense),
    }
    flex_note = "forward only"
    try:
        flex()
        sides["FlexAttention, forward"] = forward(flex)
    except Exception as error:  # no C++ compiler, or no kernel for this CPU
        flex_note = f"did not run: {str(error).splitlines()[0][:100]}"
    for work in sides.values():
        work()
    return {
        "machine": describe("torch"),
        "threads": torch.get_num_threads(),
        "dtype": str(_twins.dtype()),
        "lengths": sorted(documents.lengths),
        "flex_attention": flex_note,
        "rates": interleaved(sides, ROUNDS),
    }


def lines(result: dict[str, Any]) -> list[str]:
    said = [f"{k}: {v['median']:,.0f} positions/s" for k, v in result["rates"].items()]
    return [*said, f"FlexAttention: {result['flex_attention']}; one layer, {result['dtype']}"]

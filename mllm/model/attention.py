"""The one attention entry point. Packed rows come with document boundaries, decoding with a mask.

Letters: B rows, T query positions, S key positions, H heads, K head_dim, N documents.
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mllm.model.blockwise import Blocks

SHORTEST = 16  # documents up to here share one rectangle


class Rectangles(NamedTuple):
    """The documents of a packed batch by length, right-padded to rectangles.

    Under a causal mask nothing real looks at right padding, so no rectangle needs a mask.
    """

    shapes: list[tuple[int, int]]  # documents and positions of each rectangle
    gather: torch.Tensor  # int64 (M,): flat position of each entry; padding repeats the last one
    is_padding: torch.Tensor  # bool (M, 1)
    order: torch.Tensor  # int64 (B * T,): where each flat position stands in the rectangles


class Documents:
    """Where the documents of a packed batch begin, computed once and shared by all layers.

    `cu_seqlens` is what varlen GPU kernels take: int32 (N + 1,), offsets into the flattened B * T
    positions. Padding counts as documents of its own, so it sees only padding. What one backend
    alone needs is made when it first asks.
    """

    def __init__(self, document_ids: torch.Tensor):
        """
        Args:
            document_ids: int64 (B, T); equal neighbours in a row are one document, -1 is padding.
        """
        num_rows, seq_len = document_ids.shape
        is_start = torch.ones(num_rows, seq_len, dtype=torch.bool, device=document_ids.device)
        is_start[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        starts = is_start.flatten().nonzero().flatten()  # (N,); syncs with the GPU
        bounds = torch.cat((starts, starts.new_tensor([num_rows * seq_len])))
        self.cu_seqlens = bounds.to(torch.int32)
        self.lengths: list[int] = bounds.diff().tolist()
        self.max_length = max(self.lengths)

    @cached_property
    def rectangles(self) -> Rectangles:
        """The documents in rectangles of similar length, so that attention costs the square of a
        document's length, not of the row's, and no (T, T) mask is built in any layer.
        """
        bounds = self.cu_seqlens.long()
        starts, lengths = bounds[:-1], bounds.diff()
        order = torch.empty(int(bounds[-1]), dtype=torch.int64, device=bounds.device)
        shapes, gathers, paddings = [], [], []
        filled, shorter_than, longest = 0, 0, SHORTEST
        while shorter_than < self.max_length:
            chosen = (lengths > shorter_than) & (lengths <= longest)
            shorter_than, longest = longest, longest * 5 // 4
            if not chosen.any():
                continue
            first, length = starts[chosen], lengths[chosen]
            column = torch.arange(int(length.max()), device=bounds.device)
            is_real = column < length[:, None]  # (n, L)
            gather = first[:, None] + torch.minimum(column, length[:, None] - 1)
            order[gather[is_real]] = filled + is_real.flatten().nonzero().flatten()
            shapes.append((len(first), len(column)))
            gathers.append(gather.flatten())
            paddings.append(~is_real.flatten())
            filled += gather.numel()
        return Rectangles(shapes, torch.cat(gathers), torch.cat(paddings)[:, None], order)

    @cached_property
    def xformers_mask(self) -> Any:
        """The same boundaries as xformers has them."""
        # In `try`: the loader of `transformers` demands every other import of exported code.
        try:
            from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask
        except ImportError:
            raise ImportError("attention backend xformers: pip install 'mllm[gpu]'") from None
        return BlockDiagonalCausalMask.from_seqlens(self.lengths, device=self.cu_seqlens.device)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    documents: Documents | None = None,
    mask: torch.Tensor | None = None,
    blocks: Blocks | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    backend: str = "sdpa",
) -> torch.Tensor:
    """Softmax attention, scaled by head_dim^-0.5.

    Args:
        query: (B, T, H, K).
        key: (B, S, H, K).
        value: (B, S, H, K).
        documents: causal attention inside each document of packed rows (S = T).
        mask: bool (B, 1, T, S), True where a query may look; for decoding and left padding.
        blocks: blockwise causal attention of an input longer than trained; holds its own masks.
        is_causal: causal over the whole row; excludes the three above.
        dropout: on the probabilities, from torch's generator: the masks are made inside the
            kernels, so they differ between splits of a batch. What is said to be equal over splits
            is so for dropout 0 here.
        backend: `sdpa`, or `flash_attn` / `xformers` for packed rows on a GPU.

    Returns:
        (B, T, H, K).
    """
    if blocks is not None:
        return blocks.attend(query, key, value, dropout)
    if documents is None:
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_causal and query.shape[1] > 1,
        )
        return out.transpose(1, 2)
    return _packed(query, key, value, documents, dropout, backend)


@torch.compiler.disable  # shapes and the longest document change with every batch
def _packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    backend: str,
) -> torch.Tensor:
    if backend == "sdpa":
        return _packed_sdpa(query, key, value, documents, dropout)
    if backend == "flash_attn":
        return _packed_flash_attn(query, key, value, documents, dropout)
    if backend == "xformers":
        return _packed_xformers(query, key, value, documents, dropout)
    raise ValueError(f"attention backend {backend!r}; one of sdpa, flash_attn, xformers")


class _Reindexed(torch.autograd.Function):
    """Rows of a matrix by `index`; backward is a gather as well, by `inverse`.

    Rows that `is_padding` marks stand for no position and take no gradient. Those of `index` that
    repeat a position are such padding, so `inverse` names one row for each position.
    """

    @staticmethod
    def forward(ctx, rows, index, inverse, is_padding):  # type: ignore[no-untyped-def]
        ctx.inverse, ctx.is_padding = inverse, is_padding
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad.index_select(0, ctx.inverse)
        if ctx.is_padding is not None:
            grad.masked_fill_(ctx.is_padding, 0.0)
        return grad, None, None, None


def _packed_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
) -> torch.Tensor:
    heads = query.shape[2:]
    shapes, gather, is_padding, order = documents.rectangles
    sizes = [num * length for num, length in shapes]
    parts = [
        # (B * T, H * K) to (M, H * K)
        _Reindexed.apply(x.flatten(0, 1).flatten(1), gather, order, None).split(sizes)
        for x in (query, key, value)
    ]
    outputs = []
    for (num, length), *qkv in zip(shapes, *parts, strict=True):
        q, k, v = (x.view(num, length, *heads).transpose(1, 2) for x in qkv)  # (n, H, L, K)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        outputs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))  # (n * L, H * K)
    flat = _Reindexed.apply(torch.cat(outputs), order, gather, is_padding)  # (B * T, H * K)
    return flat.view_as(query)


def _packed_flash_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
) -> torch.Tensor:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        raise ImportError("attention backend flash_attn: pip install 'mllm[gpu]'") from None
    out = flash_attn_varlen_func(
        query.flatten(0, 1),
        key.flatten(0, 1),
        value.flatten(0, 1),
        cu_seqlens_q=documents.cu_seqlens,
        cu_seqlens_k=documents.cu_seqlens,
        max_seqlen_q=documents.max_length,
        max_seqlen_k=documents.max_length,
        dropout_p=dropout,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out.view_as(query)


def _packed_xformers(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
) -> torch.Tensor:
    mask = documents.xformers_mask
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        raise ImportError("attention backend xformers: pip install 'mllm[gpu]'") from None
    out = memory_efficient_attention(
        query.flatten(0, 1)[None],
        key.flatten(0, 1)[None],
        value.flatten(0, 1)[None],
        attn_bias=mask,
        p=dropout,
    )
    return out.view_as(query)

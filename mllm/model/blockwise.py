"""Blockwise causal attention for inputs longer than the trained length (xPos, arXiv 2212.10554).

Positions fall into blocks of half the trained length. A query sees its own block and the one
before, so no distance is longer than those of training, and the cost grows with the length alone.

A key is stored rotated about its own block's centre (see `XPos`). Blocks 0 and 1 share theirs, so
inputs within the trained length are as they were; where query and key are a block apart, a constant
factor moves the key to the query's centre, and no exponent ever leaves the trained range.

Letters: B rows, T query positions, S key positions, H heads, K head_dim, t queries of a chunk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from mllm.model.xpos import SCALE_BASE, zeta


class _Chunk(NamedTuple):
    """Queries that are computed together, and the keys that any of them sees."""

    queries: slice
    near: torch.Tensor  # int64 (n,): keys with the same centre as some query that sees them
    far: torch.Tensor  # int64 (f,): keys of the block before
    mask: torch.Tensor  # bool (B, 1, t, n + f)


def block_centres(positions: torch.Tensor, half: int) -> torch.Tensor:
    """The origin of each position's xPos exponent, int64: its block's start; block 0 has block 1's.

    Args:
        positions: int64, any shape.
        half: positions in a block, half the trained length.
    """
    return (positions // half).clamp(min=1) * half


class Blocks:
    """Which keys each query sees, computed once and shared by all layers."""

    def __init__(
        self,
        positions: torch.Tensor,
        key_positions: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        half: int,
        head_dim: int,
    ):
        """
        Args:
            positions: int64 (B, T), of the queries.
            key_positions: int64 (B, S).
            mask: bool (B or 1, 1, T, S), True where a query may look; None: causal.
            half: positions in a block.
            head_dim: K.
        """
        self.factor = zeta(head_dim, positions.device) ** (half / SCALE_BASE)  # (K,)
        self.chunks: list[_Chunk] = []
        query_blocks, key_blocks = positions // half, key_positions[:, None] // half
        for start in range(0, positions.shape[1], half):
            queries = slice(start, start + half)
            if mask is None:
                sees = key_positions[:, None] <= positions[:, queries, None]  # (B, t, S)
            else:
                sees = mask[:, 0, queries]
            blocks = query_blocks[:, queries, None]
            is_first = (blocks == 1) & (key_blocks == 0)  # one centre for both
            near = sees & ((key_blocks == blocks) | is_first)
            far = sees & (key_blocks == blocks - 1) & ~is_first
            near_keys, far_keys = (m.flatten(0, 1).any(0).nonzero().flatten() for m in (near, far))
            kept = torch.cat((near[..., near_keys], far[..., far_keys]), -1)  # (B, t, n + f)
            self.chunks.append(_Chunk(queries, near_keys, far_keys, kept[:, None]))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        """query (B, T, H, K), key and value (B, S, H, K), rotated; returns (B, T, H, K)."""
        factor = self.factor.to(key.dtype)
        outputs = []
        for queries, near, far, mask in self.chunks:
            keys = torch.cat((key[:, near], key[:, far] * factor), 1)  # (B, n + f, H, K)
            values = torch.cat((value[:, near], value[:, far]), 1)
            out = F.scaled_dot_product_attention(
                query[:, queries].transpose(1, 2),  # (B, H, t, K)
                keys.transpose(1, 2),
                values.transpose(1, 2),
                attn_mask=mask,
                dropout_p=dropout,
            )
            outputs.append(out.transpose(1, 2))
        return torch.cat(outputs, 1)

"""The causal Transformer with sub-LN (Magneto, arXiv 2210.06423): a LayerNorm at the input of each
sublayer and another before its output projection. Parameter names are those of `transformers`'
Kosmos-2, so that weights go across without a map.

Letters: B rows, T positions, D model_dim, H heads, K head_dim, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mllm.model.attention import Documents, attention
from mllm.model.blockwise import Blocks, block_centres
from mllm.model.config import ModelConfig
from mllm.model.dropout import dropout, site_keys
from mllm.model.execution import Checkpointing, run_block
from mllm.model.xpos import XPos

SINUSOIDAL_OFFSET = 2  # fairseq: the padding id 1, plus 1


class SelfAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        dim = config.model_dim
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.layer_index = layer_index
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.inner_attn_ln = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden: torch.Tensor,
        xpos: XPos | None,
        documents: Documents | None,
        mask: torch.Tensor | None,
        blocks: Blocks | None,
        cache: Any | None,
        backend: str,
    ) -> torch.Tensor:
        query, key, value = (
            proj(hidden).unflatten(-1, (-1, self.head_dim))  # (B, T, H, K)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if xpos is not None:
            query, key = xpos.rotate(query, key)
        if cache is not None:
            key, value = (
                x.transpose(1, 2)
                for x in cache.update(key.transpose(1, 2), value.transpose(1, 2), self.layer_index)
            )
        out = attention(
            query,
            key,
            value,
            documents=documents,
            mask=mask,
            blocks=blocks,
            is_causal=documents is None and mask is None,
            dropout=self.dropout if self.training else 0.0,
            backend=backend,
        )
        return self.out_proj(self.inner_attn_ln(out.flatten(2)))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.model_dim, config.ffn_dim)
        self.ffn_layernorm = nn.LayerNorm(config.ffn_dim, eps=config.layer_norm_eps)
        self.fc2 = nn.Linear(config.ffn_dim, config.model_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(hidden))))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.model_dim, eps=config.layer_norm_eps)
        self.self_attn = SelfAttention(config, layer_index)
        self.final_layer_norm = nn.LayerNorm(config.model_dim, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self,
        hidden: torch.Tensor,
        dropout_keys: torch.Tensor | None,
        kept: torch.Tensor | None,
        *context: Any,
    ) -> torch.Tensor:
        """hidden (B, T, D), dropout_keys int64 (2, B) of both sublayers or None; returns (B, T, D).

        Keys are an argument, not made here from the layer's number: all layers compile as one.
        With `kept`, as of `Decoder.forward`, other positions stop after the attention.
        """
        attention_keys, ffn_keys = (None, None) if dropout_keys is None else dropout_keys
        out = self.self_attn(self.self_attn_layer_norm(hidden), *context)
        hidden = hidden + dropout(out, self.dropout, attention_keys, is_training=self.training)
        if kept is None:
            out = self.ffn(self.final_layer_norm(hidden))
        else:
            out = self.ffn(self.final_layer_norm(hidden.flatten(0, 1).index_select(0, kept)))
            # In its place: dropout's masks are those of whole rows.
            flat = out.new_zeros(hidden.shape[:2].numel(), out.shape[-1])
            out = flat.index_copy(0, kept, out).view_as(hidden)
        return hidden + dropout(out, self.dropout, ffn_keys, is_training=self.training)


class Decoder(nn.Module):
    """Token or picture embeddings in, final hidden states out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        # How layers are run, set by the trainer; results are the same.
        self.attention_backend = "sdpa"
        self.activation_checkpointing: Checkpointing = "none"
        self.embed_tokens = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_layers))
        self.layer_norm = nn.LayerNorm(config.model_dim, eps=config.layer_norm_eps)

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        *,
        documents: Documents | None = None,
        mask: torch.Tensor | None = None,
        cache: Any | None = None,
        key_positions: torch.Tensor | None = None,
        row_seeds: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            embeddings: (B, T, D), tokens looked up and pictures in their slots, not yet scaled.
            positions: int64 (B, T), restarting at 0 with each document.
            documents: of packed rows; None means that a row is one document.
            mask: bool (B, 1, T, S), True where a query may look.
            cache: a `transformers` cache (`update(key, value, layer_index)`), or None.
            key_positions: int64 (B, S), only for blockwise attention of padded rows; left out,
                keys lead up to the first query without a gap.
            row_seeds: int64 (B,), what each row's dropout masks follow from, whatever rows it is
                computed with; None leaves them to torch's generator. Not those of attention
                probabilities: see `attention`.
            kept: int64 (N,), places in B * T whose hidden states are wanted; all (None). Half the
                positions of a mixture with pictures are not scored, and what nobody looks at is
                not computed in the last layer.

        Returns:
            Hidden states (B, T, D) after the last LayerNorm, or (N, D) of those kept.
        """
        config = self.config
        # Everything is scaled, pictures included (kosmos-2 code).
        hidden = embeddings * math.sqrt(config.model_dim)
        xpos = blocks = None
        if config.position == "xpos":
            half = config.seq_len // 2
            is_blockwise = config.blockwise_attention and documents is None
            centre = block_centres(positions, half) if is_blockwise else half
            xpos = XPos(positions, head_dim=config.head_dim, centre=centre, dtype=hidden.dtype)
            if is_blockwise:
                blocks = self._blocks(positions, key_positions, mask, cache)
        else:
            hidden = hidden + sinusoid(positions, config.model_dim).to(hidden.dtype)
        # Of the embeddings, then two of each layer.
        keys = None if row_seeds is None else site_keys(row_seeds, 1 + 2 * len(self.layers))
        hidden = dropout(
            hidden, config.dropout, None if keys is None else keys[0], is_training=self.training
        )
        context = (xpos, documents, mask, blocks, cache, self.attention_backend)
        for number, layer in enumerate(self.layers):
            own_keys = None if keys is None else keys[1 + 2 * number : 3 + 2 * number]
            is_last = number + 1 == len(self.layers)
            mode, own_kept = self.activation_checkpointing, kept if is_last else None
            hidden = run_block(layer, mode, hidden, own_keys, own_kept, *context)
        if kept is not None:
            hidden = hidden.flatten(0, 1).index_select(0, kept)
        return self.layer_norm(hidden)

    def _blocks(
        self,
        positions: torch.Tensor,
        key_positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        cache: Any | None,
    ) -> Blocks | None:
        """What blockwise attention needs, or None where all keys lie within the trained length."""
        num_past = 0 if cache is None else int(cache.get_seq_length())
        num_known = num_past + positions.shape[1]
        # A static cache has room for more keys than there are, behind the last of them.
        num_keys = num_known if mask is None else mask.shape[-1]
        if num_keys <= self.config.seq_len:
            return None
        if key_positions is None:
            steps = torch.arange(num_known, device=positions.device)
            key_positions = positions[:, :1] - num_past + steps  # (B, num_known)
        # Room without keys is masked: any position will do.
        key_positions = F.pad(key_positions, (0, num_keys - key_positions.shape[1]))
        half, head_dim = self.config.seq_len // 2, self.config.head_dim
        return Blocks(positions, key_positions, mask, half=half, head_dim=head_dim)


def sinusoid(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """fairseq's absolute positions: float32 (B, T, D), sines in the first half, cosines after."""
    half = dim // 2
    step = -math.log(10000) / (half - 1)
    frequency = torch.exp(torch.arange(half, device=positions.device, dtype=torch.float32) * step)
    angle = (positions[..., None] + SINUSOIDAL_OFFSET).float() * frequency
    return torch.cat((angle.sin(), angle.cos()), -1)

"""Fast decoding: a cache with room to grow, and the decoder for one new position a row.

`generate` computes one position a row and step, where a small model spends more time in module
calls, masks, rotations and copies of the cache than in matrix products.

Letters: B rows, H heads, K head_dim, S positions with those in the cache, D model_dim.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from mllm.model.decoder import Decoder, DecoderLayer, FeedForward, SelfAttention, sinusoid
from mllm.model.loss import LanguageHead
from mllm.model.xpos import XPos

MIN_ROOM = 64  # positions by which a full buffer grows at least
FEW_ROWS = 16


class GrowingLayer(DynamicLayer):
    """Keys and values (B, H, S, K) as views of buffers, so that a step copies one position."""

    _room: tuple[torch.Tensor, torch.Tensor]
    _views: tuple[Any, Any] = (None, None)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled():  # writing into a buffer would change what backward reads
            return super().update(key_states, value_states, *args, **kwargs)
        start = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = start + key_states.shape[2]
        # Whoever reorders, crops or selects rows puts other tensors in the place of our views.
        is_ours = self.keys is self._views[0] and self.values is self._views[1]
        if not is_ours or end > self._room[0].shape[2] or self._is_frozen():
            room = end + max(MIN_ROOM, end // 4)
            old = (self.keys, self.values) if start else (None, None)
            self._room = (
                _enlarged(old[0], key_states, start, room),
                _enlarged(old[1], value_states, start, room),
            )
        for buffer, new in zip(self._room, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self._views = (self._room[0][:, :, :end], self._room[1][:, :, :end])
        self.keys, self.values = self._views
        return self._views

    def _is_frozen(self) -> bool:
        """Made under `inference_mode`, left since: torch refuses to write into it."""
        return self._room[0].is_inference() and not torch.is_inference_mode_enabled()


def _enlarged(past: torch.Tensor | None, new: torch.Tensor, length: int, room: int) -> torch.Tensor:
    buffer = new.new_empty(*new.shape[:2], room, new.shape[3])
    if past is not None:
        buffer[:, :, :length] = past
    return buffer


class _Layer(NamedTuple):
    """The tensors of one decoder layer in the order of use, as (weight, bias)."""

    attention_norm: tuple[torch.Tensor, torch.Tensor]
    query: tuple[torch.Tensor, torch.Tensor]
    key: tuple[torch.Tensor, torch.Tensor]
    value: tuple[torch.Tensor, torch.Tensor]
    inner_norm: tuple[torch.Tensor, torch.Tensor]
    out: tuple[torch.Tensor, torch.Tensor]
    ffn_norm: tuple[torch.Tensor, torch.Tensor]
    fc1: tuple[torch.Tensor, torch.Tensor]
    inner_ffn_norm: tuple[torch.Tensor, torch.Tensor]
    fc2: tuple[torch.Tensor, torch.Tensor]


PLAIN = (
    Decoder,
    DecoderLayer,
    SelfAttention,
    FeedForward,
    nn.Embedding,
    nn.Linear,
    nn.LayerNorm,
    nn.ModuleList,
    LanguageHead,
)


def is_plain(decoder: Decoder, head: LanguageHead) -> bool:
    """Whether calling these modules does nothing but compute from their weights.

    Not so with adapters or quantised layers in it, with hooks (those of `accelerate` move weights),
    in training, or with blockwise attention.
    """
    return not (decoder.training or decoder.config.blockwise_attention) and all(
        type(module) in PLAIN
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        for module in (*decoder.modules(), head)
    )


class DecoderStep:
    """`Decoder.forward` and head for one new position a row, without module calls; equal results.

    Args:
        decoder, head: those for which `is_plain` holds.
    """

    def __init__(self, decoder: Decoder, head: LanguageHead) -> None:
        self.config = decoder.config
        self.head_weight = head.weight
        self.final_norm = _tensors(decoder.layer_norm)
        self.layers = []
        layer: Any
        for layer in decoder.layers:
            attention, ffn = layer.self_attn, layer.ffn
            modules = (
                *(layer.self_attn_layer_norm, attention.q_proj, attention.k_proj),
                *(attention.v_proj, attention.inner_attn_ln, attention.out_proj),
                *(layer.final_layer_norm, ffn.fc1, ffn.ffn_layernorm, ffn.fc2),
            )
            self.layers.append(_Layer(*map(_tensors, modules)))
        # xPos pairs channels (2i, 2i + 1): the partner of each, and the sign it comes with.
        even = torch.arange(0, self.config.head_dim, 2)
        self.partner = (
            torch.stack((even + 1, even), 1).flatten().to(decoder.layer_norm.weight.device)
        )
        self.table: tuple[torch.Tensor, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoderStep":
        return self  # copies of a cache, the way to reuse a prefix, share the model's weights

    def __call__(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: DynamicCache,
    ) -> torch.Tensor:
        """
        Args:
            embeddings: (B, 1, D), not yet scaled.
            positions: int64 (B, 1).
            mask: bool (B, 1, 1, S), True where a query may look; None: everywhere.
            cache: of all positions before.

        Returns:
            Logits (B, 1, V).
        """
        config = self.config
        num_rows, dim, eps = len(embeddings), (config.model_dim,), config.layer_norm_eps
        ffn_dim = (config.ffn_dim,)
        heads = (num_rows, config.num_heads, 1, config.head_dim)
        hidden = embeddings[:, 0] * math.sqrt(config.model_dim)  # (B, D)
        factors = [table[positions[:, 0]] for table in self._tables(positions, hidden)]
        is_xpos = config.position == "xpos"
        if not is_xpos:
            hidden = hidden + factors[0]
        for index, layer in enumerate(self.layers):
            normed = torch.layer_norm(hidden, dim, *layer.attention_norm, eps)
            query = _linear(normed, *layer.query)
            key = _linear(normed, *layer.key)
            if is_xpos:
                both = torch.stack((query, key), 1).view(num_rows, 2, -1, config.head_dim)
                turned = both.index_select(-1, self.partner)
                both = both * factors[0] + turned * factors[1]  # (B, 2, H, K)
                query, key = both.unbind(1)
            value = _linear(normed, *layer.value).view(heads)
            cached: Any = cache.layers[index]
            keys, values = cached.update(key.view(heads), value)
            out = F.scaled_dot_product_attention(query.view(heads), keys, values, attn_mask=mask)
            out = torch.layer_norm(out.view(num_rows, -1), dim, *layer.inner_norm, eps)
            hidden = hidden + _linear(out, *layer.out)
            normed = torch.layer_norm(hidden, dim, *layer.ffn_norm, eps)
            inner = F.gelu(_linear(normed, *layer.fc1))
            inner = torch.layer_norm(inner, ffn_dim, *layer.inner_ffn_norm, eps)
            hidden = hidden + _linear(inner, *layer.fc2)
        hidden = torch.layer_norm(hidden, dim, *self.final_norm, eps)
        return _linear(hidden, self.head_weight)[:, None]

    def _tables(self, positions: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What positions add or multiply, a row a position; made once and longer when needed."""
        last = int(positions.max())  # syncs with the GPU, as the end of every step does
        if self.table and last < len(self.table[0]):
            return self.table
        config = self.config
        places = torch.arange(max(config.seq_len, 2 * last), device=positions.device)[None]
        if config.position != "xpos":
            self.table = (sinusoid(places, config.model_dim)[0].to(hidden.dtype),)
            return self.table
        xpos = XPos(
            places, head_dim=config.head_dim, centre=config.seq_len // 2, dtype=hidden.dtype
        )
        (query_cos, query_sin), (key_cos, key_sin) = xpos.query, xpos.key  # (1, P, 1, K)
        sign = torch.ones_like(self.partner).to(hidden.dtype)
        sign[::2] = -1
        self.table = (
            torch.stack((query_cos[0], key_cos[0]), 1),  # (P, 2, 1, K)
            torch.stack((query_sin[0], key_sin[0]), 1) * sign,
        )
        return self.table


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear` of (B, in) rows; on a CPU the weight stands first where that is faster.

    MKL takes 3.4 ms for 2 rows of 256 times a vocabulary of 8,192, and 0.8 ms with the weight
    first; a lone row of few inputs takes 1.5 ms, as one of a pair 0.8.
    """
    num_rows, num_inputs = x.shape
    if x.device.type != "cpu" or num_rows > FEW_ROWS:
        return F.linear(x, weight, bias)
    if num_rows == 1:
        if weight.numel() < 2**17:
            return F.linear(x, weight, bias)
        if num_inputs < 512:
            x = torch.cat((x, x))
    out = (weight @ x.T).T[:num_rows]
    return out.contiguous() if bias is None else (out + bias).contiguous()


def _tensors(module: Any) -> tuple[Any, Any]:
    return module.weight, module.bias


class DecodingCache(DynamicCache):
    """A `DynamicCache` with room, and the decoder's step where it has a fast one."""

    def __init__(self, config: PreTrainedConfig, decoder: Decoder, head: LanguageHead) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() for _ in decoder.layers]
        self.step = DecoderStep(decoder, head) if is_plain(decoder, head) else None

"""Patch features in, a fixed number of latents out.

`AttentionResampler` is Kosmos-2's one cross-attention, without norm, residual or FFN; the paper's
parameter count closes only with this light form. `PerceiverResampler` is Flamingo's (arXiv
2204.14198, A.1.1). Names of the former are those of `transformers`' Kosmos-2.

Letters: I pictures, P patch features, L latents, D model_dim, H heads, K head_dim.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mllm.model.attention import attention
from mllm.model.config import ModelConfig


class CrossAttention(nn.Module):
    """Latents look at a context; linears with bias, dropout on the probabilities (`attention`)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim = config.model_dim
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """latents (I, L, D), context (I, P + L, D); returns (I, L, D)."""
        query, key, value = (
            x.unflatten(-1, (-1, self.head_dim))  # (I, ., H, K)
            for x in (self.q_proj(latents), self.k_proj(context), self.v_proj(context))
        )
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attention(query, key, value, dropout=dropout).flatten(2))


class AttentionResampler(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.vision.width, config.model_dim)
        self.latent_query = nn.Parameter(torch.empty(config.num_latents, config.model_dim))
        self.x_attn = CrossAttention(config)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(I, P, width) to (I, L, D). Latents look at the features and at themselves."""
        latents = self.latent_query.expand(len(features), -1, -1)
        return self.x_attn(latents, torch.cat((self.dense(features), latents), dim=1))


class PerceiverLayer(nn.Module):
    """Attention of the latents on features and latents, then a squared-ReLU FFN, pre-norm both."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim, eps = config.model_dim, config.layer_norm_eps
        self.features_norm = nn.LayerNorm(dim, eps=eps)
        self.latents_norm = nn.LayerNorm(dim, eps=eps)
        self.x_attn = CrossAttention(config)
        self.ffn_norm = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, latents: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """latents (I, L, D), features (I, P, D); returns (I, L, D)."""
        query = self.latents_norm(latents)
        context = torch.cat((self.features_norm(features), query), dim=1)  # (I, P + L, D)
        latents = latents + self.x_attn(query, context)
        return latents + self.fc2(F.relu(self.fc1(self.ffn_norm(latents))).square())


class PerceiverResampler(nn.Module):
    """Every layer looks at the same features; a last norm brings latents to tokens' scale."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.vision.width, config.model_dim)
        self.latent_query = nn.Parameter(torch.empty(config.num_latents, config.model_dim))
        self.layers = nn.ModuleList(PerceiverLayer(config) for _ in range(config.resampler_layers))
        self.norm = nn.LayerNorm(config.model_dim, eps=config.layer_norm_eps)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(I, P, width) to (I, L, D)."""
        features = self.dense(features)
        latents = self.latent_query.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        return self.norm(latents)

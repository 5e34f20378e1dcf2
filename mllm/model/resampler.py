"""Patch features in, a fixed number of latents out: Kosmos-2's one cross-attention.

No norm, no residual, no FFN. The paper's parameter count closes only with this light form; six
perceiver layers would give 1.84B instead of 1.6B. Names are those of `transformers`' Kosmos-2.

Letters: I pictures, P patch features, L latents, D model_dim, H heads, K head_dim.
"""

import torch
from torch import nn

from mllm.model.attention import attention
from mllm.model.config import ModelConfig


class CrossAttention(nn.Module):
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

"""The seam: pictures become latents, latents go into the image slots of the token stream.

Letters: B rows, T positions, D model_dim, I pictures, L latents, S pixels a side, V vocabulary.
"""

from typing import Any

import torch
from torch import nn

from mllm.model.attention import Documents
from mllm.model.config import ModelConfig
from mllm.model.decoder import Decoder
from mllm.model.execution import Checkpointing
from mllm.model.loss import LanguageHead
from mllm.model.resampler import AttentionResampler, PerceiverResampler
from mllm.model.vision import VisionEncoder


class MultimodalModel(nn.Module):
    """Vision encoder, resampler, decoder and tied head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        is_perceiver = config.resampler == "perceiver"
        self.resampler = (PerceiverResampler if is_perceiver else AttentionResampler)(config)
        self.decoder = Decoder(config)
        self.head = LanguageHead(self.decoder.embed_tokens)

    def set_execution(
        self, *, attention_backend: str, activation_checkpointing: Checkpointing, compile: bool
    ) -> None:
        """How training runs the blocks: what a step costs, not what it computes.

        Args:
            attention_backend: of packed rows; see `attention`.
            activation_checkpointing: see `run_block`; the vision encoder has no `selective` and
                keeps its blocks' inputs alone.
            compile: compiles each block of the decoder at its first call.
        """
        self.decoder.attention_backend = attention_backend
        self.decoder.activation_checkpointing = activation_checkpointing
        if activation_checkpointing != "none":
            self.vision.vision_model.activation_checkpointing_enable({"use_reentrant": False})
        if compile:
            for layer in self.decoder.layers:
                layer.compile()

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (I, 3, S, S) to latents (I, L, D)."""
        return self.resampler(self.vision(pixels))

    def embed(
        self,
        token_ids: torch.Tensor,
        slot_mask: torch.Tensor,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Looks tokens up and puts latents into their slots, row by row and left to right.

        Args:
            token_ids: int64 (B, T).
            slot_mask: bool (B, T), True at image slots.
            latents: (I, L, D), or None for text alone.

        Raises:
            ValueError: slots and latents differ in number.
        """
        embeddings = self.decoder.embed_tokens(token_ids)
        num_slots = int(slot_mask.sum())
        num_latents = 0 if latents is None else latents.shape[0] * latents.shape[1]
        if num_slots != num_latents:
            per_row = slot_mask.sum(1).tolist()
            pictures = 0 if latents is None else len(latents)
            raise ValueError(
                f"{num_slots} image slots (by row {per_row}) but {pictures} pictures of "
                f"{self.config.num_latents} latents each"
            )
        if latents is None:
            return embeddings
        return embeddings.masked_scatter(slot_mask[..., None], latents.to(embeddings.dtype))

    def forward(
        self,
        token_ids: torch.Tensor,
        slot_mask: torch.Tensor,
        pixels: torch.Tensor,
        positions: torch.Tensor,
        *,
        num_images: int | None = None,
        documents: Documents | None = None,
        mask: torch.Tensor | None = None,
        cache: Any | None = None,
        row_seeds: torch.Tensor | None = None,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, T, D), or (N, D) of those kept, of packed or padded rows.

        The vision encoder runs exactly once, on a dummy picture where a batch has none: ZeRO 2
        and 3 wait for every module on every rank. The dummy's output is multiplied by zero.

        Args:
            token_ids: int64 (B, T).
            slot_mask: bool (B, T).
            pixels: float (I, 3, S, S), I >= 1, normalised.
            positions: int64 (B, T).
            num_images: real pictures among I: all of them (None), or 0 for a dummy.
            documents, mask, cache, row_seeds, kept: as in `Decoder.forward`.
        """
        latents = self.encode_images(pixels)
        if num_images == 0:
            embeddings = self.embed(token_ids, slot_mask, None)
            embeddings = embeddings + (latents.sum() * 0).to(embeddings.dtype)
        else:
            embeddings = self.embed(token_ids, slot_mask, latents)
        return self.decoder(
            embeddings,
            positions,
            documents=documents,
            mask=mask,
            cache=cache,
            row_seeds=row_seeds,
            kept=kept,
        )

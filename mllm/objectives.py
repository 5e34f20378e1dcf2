"""What a stage minimises: modules that take a batch and give a summed loss.

DeepSpeed wraps the objective, so that everything with parameters runs inside one module call.
"""

import torch
from torch import nn

from mllm.images import normalise
from mllm.model.attention import Documents
from mllm.model.contrastive import ContrastiveModel
from mllm.model.multimodal import MultimodalModel
from mllm.stream.batch import Batch
from mllm.stream.pairs import PairBatch


class LanguageModelling(nn.Module):
    """Next-token loss on the scored positions of packed rows (K1 2.3)."""

    def __init__(self, model: MultimodalModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns:
            The summed loss with gradient, and the loss of each scored position, row by row,
            float32 nats without gradient.
        """
        dtype = self.model.decoder.embed_tokens.weight.dtype
        scored = batch.loss_mask.flatten().nonzero().flatten()  # (N,)
        is_dummy = len(scored) == 0
        if is_dummy:  # the head runs on every rank, on one position that does not count
            scored = scored.new_zeros(1)
        hidden = self.model(
            batch.token_ids,
            batch.slot_mask,
            normalise(batch.pixels).to(dtype),
            batch.positions,
            num_images=batch.num_images,
            documents=Documents(batch.document_ids),
            row_seeds=batch.row_seeds,
            kept=scored,
        )  # (N, D)
        loss_sum, losses = self.model.head(hidden, batch.target_ids.flatten()[scored])
        return (loss_sum * 0, losses[:0]) if is_dummy else (loss_sum, losses)


class Contrastive(nn.Module):
    """CLIP's objective over the pairs of all ranks."""

    def __init__(self, model: ContrastiveModel):
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns:
            The summed loss of this rank's pairs with gradient, and float32 (2, B): each pair's
            loss, and 1 where a picture's best caption was a right one.
        """
        dtype = self.model.image_projection.weight.dtype
        return self.model(
            normalise(batch.pixels).to(dtype),
            batch.token_ids,
            batch.lengths,
            batch.caption_ids,
            batch.is_used,
        )

"""CLIP's pre-training of the vision encoder (arXiv 2103.00020): pictures and captions meet.

Letters: B pairs of this rank, G pairs of all ranks, T caption positions, E embed_dim, S pixels.
"""

import math

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from mllm.model.config import VisionConfig
from mllm.model.vision import VisionEncoder

MAX_SCALE = math.log(100.0)  # CLIP's bound on the learnt inverse temperature


class ContrastiveModel(nn.Module):
    """Vision encoder and text tower, each projected to one space."""

    def __init__(
        self,
        vision: VisionConfig,
        *,
        vocab_size: int,
        text_width: int,
        text_layers: int,
        text_heads: int,
        text_len: int,
        embed_dim: int,
        initial_temperature: float,
    ):
        super().__init__()
        self.vision = VisionEncoder(vision)
        self.text_model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab_size,
                hidden_size=text_width,
                num_hidden_layers=text_layers,
                num_attention_heads=text_heads,
                intermediate_size=4 * text_width,
                max_position_embeddings=text_len,
                bos_token_id=0,
                pad_token_id=1,
                eos_token_id=2,
                attn_implementation="sdpa",
            )
        )
        self.visual_projection = nn.Linear(vision.width, embed_dim, bias=False)
        self.text_projection = nn.Linear(text_width, embed_dim, bias=False)
        # One element rather than none: DeepSpeed broadcasts parameters as bytes, which a scalar
        # cannot be viewed as.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / initial_temperature)]))

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B, 3, S, S) to unit vectors (B, E).

        The mean over all tokens rather than CLS alone: the resampler will read every token, so
        every token is taught.
        """
        return F.normalize(self.visual_projection(self.vision(pixels).mean(1)), dim=-1)

    def embed_texts(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Captions, int64 (B, T) right-padded and (B,), to unit vectors (B, E).

        The state at the last token stands for the caption, as in CLIP.
        """
        hidden = self.text_model(input_ids=token_ids).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        return F.normalize(self.text_projection(last), dim=-1)

    def forward(
        self,
        pixels: torch.Tensor,
        token_ids: torch.Tensor,
        lengths: torch.Tensor,
        caption_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Symmetric InfoNCE of this rank's pairs against those of all ranks.

        Pairs with equal `caption_ids` (two artists' pictures of one thing) are each other's
        positives, not negatives.

        Returns:
            The sum over this rank's B pairs, with the gradient of the global sum (the ranks'
            gradients add up to it); and float32 (2, B) without gradient: each pair's loss, and 1
            where a picture's best caption was a right one.
        """
        images = gather_with_grad(self.embed_images(pixels))  # (G, E)
        texts = gather_with_grad(self.embed_texts(token_ids, lengths))
        caption_ids = gather(caption_ids)
        batch = len(pixels)
        first = torch_dist.get_rank() * batch if len(images) > batch else 0
        mine = slice(first, first + batch)
        scale = self.logit_scale.clamp(max=MAX_SCALE).exp().float()
        is_positive = caption_ids[mine, None] == caption_ids  # (B, G)
        target = is_positive / is_positive.sum(1, keepdim=True)
        to_texts = scale * images[mine].float() @ texts.float().T  # (B, G)
        to_images = scale * texts[mine].float() @ images.float().T
        losses = F.cross_entropy(to_texts, target, reduction="none")
        losses = (losses + F.cross_entropy(to_images, target, reduction="none")) / 2
        is_right = is_positive.gather(1, to_texts.argmax(1, keepdim=True)).flatten()
        return losses.sum(), torch.stack((losses.detach(), is_right.float()))


class _GatherWithGrad(torch.autograd.Function):
    """All ranks' rows; backward sums what every rank wants of this rank's rows."""

    @staticmethod
    def forward(ctx, rows):  # type: ignore[no-untyped-def]
        ctx.num_rows = len(rows)
        return gather(rows)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad.contiguous()
        torch_dist.all_reduce(grad)
        first = torch_dist.get_rank() * ctx.num_rows
        return grad[first : first + ctx.num_rows]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, ...) of all ranks, in rank order: (G, ...)."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(torch_dist.get_world_size())]
    torch_dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_grad(rows: torch.Tensor) -> torch.Tensor:
    """`gather` through which gradients of every rank's loss flow back."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return rows
    return _GatherWithGrad.apply(rows)

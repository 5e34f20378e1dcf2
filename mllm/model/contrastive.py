"""CLIP's pre-training of the vision encoder (arXiv 2103.00020): pictures and captions meet.

Letters: B pairs of this rank, G pairs of all ranks, T caption positions, E embed_dim, S pixels.
"""

import math

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from mllm.model.config import TextConfig, VisionConfig
from mllm.model.vision import VisionEncoder

UNUSED_LOGIT = -1e9
MAX_SCALE = math.log(100.0)  # CLIP's bound on the learnt inverse temperature


class BagTextEncoder(nn.Module):
    """A caption's mean token embedding and a residual MLP on it.

    Names rarely need word order, and a bag is learnt in far fewer steps than a Transformer: with
    its embeddings at ten times the learning rate, 5-way naming after 206 steps of the demo's
    contrast was 63.5 % where equal rates gave 56.1 %.
    """

    def __init__(self, vocab_size: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """int64 (B, T) right-padded and (B,) to (B, E)."""
        is_token = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]
        weights = is_token / lengths.clamp(min=1)[:, None]  # (B, T)
        embedded = self.embedding(token_ids)
        mean = torch.einsum("bt,bte->be", weights.to(embedded.dtype), embedded)
        return mean + self.fc2(F.gelu(self.fc1(self.norm(mean))))


class ClipTextEncoder(nn.Module):
    """CLIP's text Transformer (causal, learnt positions), read at a caption's last token."""

    def __init__(
        self, config: TextConfig, *, vocab_size: int, text_len: int, activation: str, dim: int
    ):
        super().__init__()
        self.text_model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab_size,
                max_position_embeddings=text_len,
                hidden_size=config.width,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.mlp_dim,
                hidden_act=activation,
                bos_token_id=None,
                eos_token_id=0,  # for `pooler_output`, which is not used
            )
        )
        self.projection = nn.Linear(config.width, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)  # CLIP's

    def forward(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """int64 (B, T) right-padded and (B,) to (B, E)."""
        hidden = self.text_model(input_ids=token_ids).last_hidden_state  # (B, T, width)
        # By place: its `pooler_output` looks for one id, and for the highest where that id is 2.
        return self.projection(hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1])


class ContrastiveModel(nn.Module):
    """Vision encoder and text encoder, meeting in one space.

    Args:
        text: sizes of CLIP's text Transformer; None: a bag of tokens, and pictures read as the mean
            of their features.
        text_len: most tokens of a caption; the Transformer's positions.
    """

    def __init__(
        self,
        vision: VisionConfig,
        *,
        vocab_size: int,
        embed_dim: int,
        initial_temperature: float,
        text: TextConfig | None = None,
        text_len: int = 77,
    ):
        super().__init__()
        self.vision = VisionEncoder(vision)
        set_sincos_positions(self.vision)
        self.is_clip = text is not None
        self.text: BagTextEncoder | ClipTextEncoder
        if text is None:
            self.text = BagTextEncoder(vocab_size, embed_dim)
        else:
            self.text = ClipTextEncoder(
                text,
                vocab_size=vocab_size,
                text_len=text_len,
                activation=vision.activation,
                dim=embed_dim,
            )
        self.image_projection = nn.Linear(vision.width, embed_dim, bias=False)
        if self.is_clip:
            nn.init.normal_(self.image_projection.weight, std=vision.width**-0.5)
        # One element rather than none: DeepSpeed broadcasts parameters as bytes, which a scalar
        # cannot be viewed as.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / initial_temperature)]))

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B, 3, S, S) to unit vectors (B, E).

        CLIP reads a picture at CLS, whatever `model.vision` says of features. The bag's side takes
        the mean over all tokens: the resampler will read every token, so every token is taught.
        """
        if self.is_clip:
            features = self.vision.vision_model(pixels).pooler_output  # ln_post of CLS
        else:
            features = self.vision(pixels).mean(1)
        return F.normalize(self.image_projection(features), dim=-1)

    def embed_texts(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Captions, int64 (B, T) right-padded and (B,), to unit vectors (B, E)."""
        return F.normalize(self.text(token_ids, lengths), dim=-1)

    def forward(
        self,
        pixels: torch.Tensor,
        token_ids: torch.Tensor,
        lengths: torch.Tensor,
        caption_ids: torch.Tensor,
        is_used: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Symmetric InfoNCE of this rank's pairs against those of all ranks.

        Pairs with equal `caption_ids` (two artists' pictures of one thing) are each other's
        positives, not negatives. Pairs without `is_used`, bool (B,), take no part.

        Returns:
            The sum over this rank's B pairs, with the gradient of the global sum (the ranks'
            gradients add up to it); and float32 (2, B) without gradient: each pair's loss, and 1
            where a picture's best caption was a right one.
        """
        images = gather_with_grad(self.embed_images(pixels))  # (G, E)
        texts = gather_with_grad(self.embed_texts(token_ids, lengths))
        caption_ids = gather(caption_ids)
        all_used = gather(is_used.int()).bool()  # gloo gathers no bool
        batch = len(pixels)
        first = torch_dist.get_rank() * batch if len(images) > batch else 0
        mine = slice(first, first + batch)
        scale = _Ceiling.apply(self.logit_scale).exp().float()
        is_positive = (caption_ids[mine, None] == caption_ids) & all_used  # (B, G)
        target = is_positive / is_positive.sum(1, keepdim=True).clamp(min=1)
        to_texts = scale * images[mine].float() @ texts.float().T  # (B, G)
        to_images = scale * texts[mine].float() @ images.float().T
        # Finite, so that a row without any other pair has no NaN in its gradient.
        to_texts = to_texts.masked_fill(~all_used, UNUSED_LOGIT)
        to_images = to_images.masked_fill(~all_used, UNUSED_LOGIT)
        losses = F.cross_entropy(to_texts, target, reduction="none")
        losses = (losses + F.cross_entropy(to_images, target, reduction="none")) / 2
        losses = losses.masked_fill(~is_used, 0.0)
        is_positive = is_positive & is_used[:, None]
        is_right = is_positive.gather(1, to_texts.argmax(1, keepdim=True)).flatten()
        return losses.sum(), torch.stack((losses.detach(), is_right.float()))


@torch.no_grad()
def set_sincos_positions(vision: VisionEncoder) -> None:
    """Starts the ViT's learnt positions from the sines of its grid, half the usual amplitude.

    A short training does not get far from random positions.
    """
    config = vision.config
    side = config.image_size // config.patch_size
    quarter = config.width // 4
    frequency = 100.0 ** -(torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (x, y)]  # (P - 1, width / 4)
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
    table = vision.vision_model.embeddings.position_embedding.weight  # (P, width), CLS first
    table[1:, : 4 * quarter] = 0.5 * waves


class _Ceiling(torch.autograd.Function):
    """At most MAX_SCALE. Above it, only a gradient that leads back down passes.

    `clamp` lets none pass there, so a temperature that once arrived at 0.01 would stay for good,
    where CLIP's, put back to the bound after each step, can rise again.
    """

    @staticmethod
    def forward(ctx, scale):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(scale > MAX_SCALE)
        return scale.clamp(max=MAX_SCALE)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (is_above,) = ctx.saved_tensors
        total = grad.clone()  # each rank has its share of it, and all must decide alike
        if _world_size() > 1:
            torch_dist.all_reduce(total)
        return grad.masked_fill(is_above & (total <= 0), 0.0)


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
    if _world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(_world_size())]
    torch_dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_grad(rows: torch.Tensor) -> torch.Tensor:
    """`gather` through which gradients of every rank's loss flow back."""
    return rows if _world_size() == 1 else _GatherWithGrad.apply(rows)


def _world_size() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1

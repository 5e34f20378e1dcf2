"""Floating-point operations of the products of matrices, by part: 2 for each multiply and add.

Norms, GELU and other elementwise work are not counted, as in `torch.utils.flop_counter`. Attention
counts every pair of a query and a key, those too that a causal mask hides.

Letters: as in the model: D model_dim, V vocabulary, P patch features, L latents.
"""

from collections.abc import Sequence

from mllm.model.config import ModelConfig


def _block(width: int, ffn_dim: int, lengths: Sequence[int]) -> int:
    """A Transformer block: q, k, v, out, attention and FFN over sequences of these lengths."""
    linears = 2 * sum(lengths) * (4 * width * width + 2 * width * ffn_dim)
    return linears + sum(4 * length * length * width for length in lengths)


def forward_flops(
    config: ModelConfig, document_lengths: Sequence[int], num_images: int, num_scored: int
) -> dict[str, int]:
    """One forward pass, by part.

    Args:
        document_lengths: positions of each document; documents do not see each other.
        num_images: pictures that are encoded.
        num_scored: positions for which logits are computed.
    """
    vision, dim, latents = config.vision, config.model_dim, config.num_latents
    patches = (vision.image_size // vision.patch_size) ** 2
    stem = 2 * patches * 3 * vision.patch_size**2 * vision.width
    encoder = stem + vision.num_layers * _block(vision.width, vision.mlp_dim, [patches + 1])
    context = vision.num_features + latents
    dense = 2 * vision.num_features * vision.width * dim
    attention = 4 * (latents + context) * dim * dim + 4 * latents * context * dim
    if config.resampler == "perceiver":
        attention = config.resampler_layers * (attention + 2 * latents * 2 * dim * 4 * dim)
    return {
        "vision": num_images * encoder,
        "resampler": num_images * (dense + attention),
        "decoder": config.num_layers * _block(dim, config.ffn_dim, document_lengths),
        "head": 2 * num_scored * dim * config.vocab_size,
    }


def step_flops(
    config: ModelConfig,
    document_lengths: Sequence[int],
    num_images: int,
    num_scored: int,
    train_last_blocks: int,
) -> dict[str, int]:
    """Forward and backward: a trained part costs three times its forward pass, a frozen one once.

    What a checkpointed block computes again is not counted: it is no use to the model.
    """
    flops = forward_flops(config, document_lengths, num_images, num_scored)
    vision = config.vision
    share = min(max(train_last_blocks, 0), vision.num_layers) / vision.num_layers
    return {
        name: round(count * (1 + 2 * share)) if name == "vision" else 3 * count
        for name, count in flops.items()
    }

"""Floating-point operations of the products of matrices, by part: 2 for each multiply and add.

Norms, GELU and other elementwise work are not counted, as in `torch.utils.flop_counter`. Attention
counts every pair of a query and a key, those too that a causal mask hides.

Letters: as in the model: D model_dim, V vocabulary, P patch features, L latents.
"""

from collections.abc import Sequence

from mllm.model.config import ModelConfig, TextConfig, VisionConfig


def _block(width: int, ffn_dim: int, lengths: Sequence[int]) -> int:
    """A Transformer block: q, k, v, out, attention and FFN over sequences of these lengths."""
    linears = 2 * sum(lengths) * (4 * width * width + 2 * width * ffn_dim)
    return linears + sum(4 * length * length * width for length in lengths)


def _stem(vision: VisionConfig) -> int:
    """Patches of one picture to vectors."""
    return 2 * vision.num_patches * 3 * vision.patch_size**2 * vision.width


def _vision_block(vision: VisionConfig) -> int:
    return _block(vision.width, vision.mlp_dim, [vision.num_patches + 1])


def text_flops(text: TextConfig | None, text_len: int, embed_dim: int) -> int:
    """One caption's forward pass on the vision stage's text side; None: the bag of tokens."""
    if text is None:
        return 2 * text_len * embed_dim + 2 * 2 * 2 * embed_dim * embed_dim
    blocks = text.num_layers * _block(text.width, text.mlp_dim, [text_len])
    return blocks + 2 * text.width * embed_dim


def _dense(config: ModelConfig) -> int:
    """Patch features of one picture to model_dim."""
    return 2 * config.vision.num_features * config.vision.width * config.model_dim


def forward_flops(
    config: ModelConfig, document_lengths: Sequence[int], num_images: int, num_scored: int
) -> dict[str, int]:
    """One forward pass, by part.

    Args:
        document_lengths: positions of each document; documents do not see each other.
        num_images: pictures that are encoded.
        num_scored: positions for which logits are computed, and the last layer's FFN.
    """
    vision, dim, latents = config.vision, config.model_dim, config.num_latents
    encoder = _stem(vision) + vision.num_layers * _vision_block(vision)
    context = vision.num_features + latents
    attention = 4 * (latents + context) * dim * dim + 4 * latents * context * dim
    if config.resampler == "perceiver":
        attention = config.resampler_layers * (attention + 2 * latents * 2 * dim * 4 * dim)
    decoder = config.num_layers * _block(dim, config.ffn_dim, document_lengths)
    decoder -= (sum(document_lengths) - num_scored) * 4 * dim * config.ffn_dim
    return {
        "vision": num_images * encoder,
        "resampler": num_images * (_dense(config) + attention),
        "decoder": decoder,
        "head": 2 * num_scored * dim * config.vocab_size,
    }


def step_flops(
    config: ModelConfig,
    document_lengths: Sequence[int],
    num_images: int,
    num_scored: int,
    train_last_blocks: int,
) -> dict[str, int]:
    """Forward and backward: a trained product costs three times its forward pass, a frozen one
    once, and twice where nothing that it takes has a gradient.

    Of what `train.freeze` names, more is counted than is done. What a checkpointed block computes
    again is not counted: it is no use to the model.
    """
    flops = forward_flops(config, document_lengths, num_images, num_scored)
    num_blocks = config.vision.num_layers
    num_trained = min(max(train_last_blocks, 0), num_blocks)
    vision_backward = 2 * num_trained * _vision_block(config.vision)
    if num_trained == num_blocks:
        vision_backward += _stem(config.vision)  # of its weights; pixels have no gradient
    step = {name: 3 * count for name, count in flops.items()}
    step["vision"] = flops["vision"] + num_images * vision_backward
    if num_trained == 0:
        step["resampler"] -= num_images * _dense(config)  # features have no gradient
    return step

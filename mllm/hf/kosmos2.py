"""This model and `transformers`' Kosmos-2: which sizes correspond, and under which names.

Decoder layers, resampler and CLIP have the same names below their prefixes, so a state dict goes
across by prefix alone. Kosmos-2 has sinusoidal positions and the one-layer resampler only.
"""

from typing import Any

import torch
from transformers import Kosmos2Config

from mllm.errors import UserError
from mllm.model.config import ModelConfig, VisionConfig

PREFIXES = {  # ours: Kosmos-2's
    "vision.vision_model.": "vision_model.model.",
    "resampler.": "image_to_text_projection.",
    "decoder.": "text_model.model.",
}
EMBEDDING = "decoder.embed_tokens.weight"
OUR_HEAD, THEIR_HEAD = "head.weight", "text_model.lm_head.weight"  # tied to the embedding

# What Kosmos-2 computes without a choice: our field, its value, and why any other is refused.
FIXED: tuple[tuple[str, Any, str], ...] = (
    ("position", "sinusoidal", "Kosmos-2 has no xPos"),
    ("resampler", "attention", "Kosmos-2 has no perceiver"),
    ("vision.post_layer_norm", True, "Kosmos-2 always applies ln_post"),
    ("vision.normalise_features", True, "Kosmos-2 always normalises patch features"),
    ("vision.keep_cls", True, "Kosmos-2 always keeps CLS"),
)


def to_kosmos2_config(config: ModelConfig, pad_token_id: int) -> Kosmos2Config:
    """
    Args:
        pad_token_id: positions are counted over all other ids, so it must be the tokenizer's.

    Raises:
        UserError: Kosmos-2 cannot compute what this model computes.
    """
    values = config.to_dict()
    values |= {f"vision.{name}": value for name, value in values["vision"].items()}
    for name, value, reason in FIXED:
        if values[name] != value:
            raise UserError(
                f"model.{name}: {values[name]} cannot be exported as kosmos2 ({reason}); "
                f"use --format mllm, or train with model.{name}: {value}"
            )
    vision = config.vision
    return Kosmos2Config(
        text_config={
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.seq_len,
            "embed_dim": config.model_dim,
            "layers": config.num_layers,
            "ffn_dim": config.ffn_dim,
            "attention_heads": config.num_heads,
            "dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "layer_norm_eps": config.layer_norm_eps,
            "pad_token_id": pad_token_id,
        },
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": vision.activation,
        },
        latent_query_num=config.num_latents,
    )


def from_kosmos2_config(config: Kosmos2Config) -> ModelConfig:
    """
    Raises:
        UserError: the settings lie outside what this model computes.
    """
    text: Any = config.text_config
    vision: Any = config.vision_config
    fixed = (
        ("text_config.activation_function", text.activation_function, "gelu"),
        ("text_config.scale_embedding", text.scale_embedding, True),
        ("text_config.add_cross_attention", text.add_cross_attention, False),
        ("text_config.tie_word_embeddings", text.tie_word_embeddings, True),
        ("text_config.pad_token_id", text.pad_token_id, 1),  # where positions start to count
        ("vision_config.num_channels", vision.num_channels, 3),
        ("vision_config.layer_norm_eps", vision.layer_norm_eps, 1e-5),
    )
    for name, value, ours in fixed:
        if value != ours:
            raise UserError(f"config.json: {name} is {value}; this model has {ours} and no other")
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise UserError(f"config.json: vision_config.{name} must be one number, a square")
    try:
        return ModelConfig(
            vocab_size=text.vocab_size,
            seq_len=text.max_position_embeddings,
            model_dim=text.embed_dim,
            num_layers=text.layers,
            num_heads=text.attention_heads,
            ffn_dim=text.ffn_dim,
            position="sinusoidal",
            num_latents=config.latent_query_num,
            dropout=text.dropout,
            attention_dropout=text.attention_dropout,
            layer_norm_eps=text.layer_norm_eps,
            vision=VisionConfig(
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                width=vision.hidden_size,
                num_layers=vision.num_hidden_layers,
                num_heads=vision.num_attention_heads,
                mlp_dim=vision.intermediate_size,
                activation=vision.hidden_act,
            ),
        )
    except ValueError as error:
        raise UserError(f"config.json: {error}") from None


def to_kosmos2_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`MultimodalModel.state_dict()` under Kosmos-2's names, its tied head included."""
    renamed = {
        _with_prefix(name, PREFIXES): tensor for name, tensor in state.items() if name != OUR_HEAD
    }
    return renamed | {THEIR_HEAD: state[EMBEDDING]}


def from_kosmos2_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`Kosmos2ForConditionalGeneration.state_dict()` under this model's names, without the head."""
    theirs = {value: key for key, value in PREFIXES.items()}
    return {
        _with_prefix(name, theirs): tensor for name, tensor in state.items() if name != THEIR_HEAD
    }


def _with_prefix(name: str, prefixes: dict[str, str]) -> str:
    for prefix, other in prefixes.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    raise AssertionError(f"tensor {name} belongs to no known part")

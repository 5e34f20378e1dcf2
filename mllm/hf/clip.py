"""A run of the vision stage as `transformers`' CLIPModel: names alone differ, and three rows more.

The rows are those of `<pad>`, `<s>` and `</s>` under new ids, which `clip_tokenizer` gives them.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from mllm.config import Config
from mllm.errors import UserError
from mllm.files import write_json
from mllm.hf.clip_tokenizer import MOVED, clip_tokenizer
from mllm.hf.write import MAX_SHARD_SIZE, load_weights, save_weights
from mllm.images import MEAN, STD
from mllm.model.contrastive import MAX_SCALE

PREFIXES = {  # ours: CLIPModel's
    "vision.vision_model.": "vision_model.",
    "text.text_model.": "text_model.",
    "text.projection.": "text_projection.",
    "image_projection.": "visual_projection.",
}
TOKENS = "text_model.embeddings.token_embedding.weight"


def write_clip(
    out_dir: str | Path,
    state: dict[str, torch.Tensor],
    config: Config,
    tokenizer_path: str | Path,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> int:
    """Writes everything that `transformers` needs into `out_dir`; gives back the parameter count.

    Args:
        state: `ContrastiveModel.state_dict()`.
        config: of the run.
        tokenizer_path: the SentencePiece file.
        max_shard_size: largest safetensors file, such as `500MB`.

    Raises:
        UserError: the bag of tokens, which CLIPModel cannot compute; weights, sizes and tokenizer
            do not belong together; the weights cannot be written.
    """
    if config.contrastive.text_tower != "transformer":
        raise UserError(
            f"contrastive.text_tower: {config.contrastive.text_tower} cannot be exported as clip "
            "(CLIP's text side is a Transformer); train with contrastive.text_tower: transformer"
        )
    tokenizer = clip_tokenizer(tokenizer_path, config.contrastive)
    if len(tokenizer) != config.model.vocab_size + len(MOVED):
        raise UserError(
            f"{tokenizer_path} has {len(tokenizer) - len(MOVED)} pieces but the model was "
            f"trained with vocab_size {config.model.vocab_size}; name the run's own tokenizer"
        )
    model = CLIPModel(to_clip_config(config))
    load_weights(model, to_clip_state(state))
    save_weights(model, Path(out_dir), max_shard_size)
    tokenizer.save_pretrained(out_dir)
    write_json(Path(out_dir) / "preprocessor_config.json", image_settings(config))
    return model.num_parameters()


def to_clip_config(config: Config) -> CLIPConfig:
    """Sizes under CLIPConfig's names, and the ids that `clip_tokenizer` gives special tokens."""
    vision, settings, text = config.model.vision, config.contrastive, config.contrastive.text
    pad_id, bos_id, eos_id = (config.model.vocab_size + i for i in range(len(MOVED)))
    text_config = CLIPTextConfig(
        vocab_size=config.model.vocab_size + len(MOVED),
        hidden_size=text.width,
        intermediate_size=text.mlp_dim,
        num_hidden_layers=text.num_layers,
        num_attention_heads=text.num_heads,
        max_position_embeddings=settings.text_len,
        hidden_act=vision.activation,
        projection_dim=settings.embed_dim,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
    )
    vision_config = CLIPVisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_size=vision.width,
        intermediate_size=vision.mlp_dim,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        hidden_act=vision.activation,
        projection_dim=settings.embed_dim,
    )
    return CLIPConfig(
        text_config=text_config.to_dict(),
        vision_config=vision_config.to_dict(),
        projection_dim=settings.embed_dim,
    )


def to_clip_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`ContrastiveModel.state_dict()` under CLIPModel's names."""
    renamed = {_renamed(name): tensor for name, tensor in state.items()}
    # CLIPModel knows no bound, so it gets what our scores were computed with.
    renamed["logit_scale"] = state["logit_scale"].clamp(max=MAX_SCALE).squeeze(0)
    rows = renamed[TOKENS]
    renamed[TOKENS] = torch.cat((rows, rows[list(MOVED.values())]))
    return renamed


def _renamed(name: str) -> str:
    for prefix, other in PREFIXES.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name


def image_settings(config: Config) -> dict[str, Any]:
    """`preprocessor_config.json`: CLIP's image processor with the run's geometry.

    Of an upright RGB picture it makes the trainer's pixels; but `crop` cuts at whole pixels of a
    picture already resized, where the trainer cuts first, and EXIF and transparency are not seen.
    """
    side, is_crop = config.model.vision.image_size, config.data.resize == "crop"
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side} if is_crop else {"height": side, "width": side},
        crop_size={"height": side, "width": side},
        do_center_crop=is_crop,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return processor.to_dict()

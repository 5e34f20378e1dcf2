"""Weights of a trained CLIP, from a local file or folder, into our vision encoder.

What is read: a folder of `transformers` (a CLIPModel's or a CLIPVisionModel's), or a state dict
with OpenAI's names, as open_clip writes it (`.safetensors`, or `.bin` / `.pt` without code in it).
Nothing is downloaded.

A folder's config.json is compared with `model.vision`. A state dict says neither its activation nor
its number of heads: `model.vision.activation` (OpenAI's own is quick_gelu, most of open_clip's are
gelu) and `model.vision.num_heads` must be set by the user, and a wrong one cannot be noticed.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModel

from mllm.errors import UserError
from mllm.model.vision import VisionEncoder

# OpenAI's names, after `visual.`, and those of `transformers`. Those of blocks follow their number.
STEM = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def load_vision_weights(encoder: VisionEncoder, path: str | Path) -> int:
    """Replaces every value of the encoder; gives back how many tensors that were.

    Raises:
        UserError: no such file, not CLIP's names, or other sizes than the config's.
    """
    path = Path(path)
    weights = _from_folder(encoder, path) if path.is_dir() else _from_file(path)
    own = encoder.vision_model.state_dict()
    if missing := sorted(own.keys() - weights.keys()):
        raise UserError(
            f"{path} lacks {len(missing)} of the vision encoder's tensors: {missing[0]}"
        )
    if extra := sorted(weights.keys() - own.keys()):
        raise UserError(
            f"{path} has {extra[0]}, which model.vision lacks: mend model.vision's sizes"
        )
    for name, value in own.items():
        if weights[name].shape != value.shape:
            raise UserError(
                f"{path} has {name} of {list(weights[name].shape)}, model.vision makes it "
                f"{list(value.shape)}: mend model.vision's sizes"
            )
    encoder.vision_model.load_state_dict(weights)
    return len(own)


def _from_folder(encoder: VisionEncoder, path: Path) -> dict[str, torch.Tensor]:
    try:
        # Any: the annotation leaves out what `output_loading_info` adds.
        loaded: Any = CLIPVisionModel.from_pretrained(
            path, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: no CLIP here ({str(error).splitlines()[0]})") from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # they hold random values
        raise UserError(
            f"{path} lacks {len(missing)} of its CLIP's tensors: {missing[0]}; copy it again"
        )
    ours: Any = encoder.vision_model.config
    for key, field in (("num_heads", "num_attention_heads"), ("activation", "hidden_act")):
        theirs, own = getattr(model.config, field), getattr(ours, field)
        if theirs != own:
            raise UserError(f"{path} has {theirs} where model.vision.{key} is {own}; set it so")
    if model.config.layer_norm_eps != ours.layer_norm_eps:
        raise UserError(
            f"{path}/config.json: layer_norm_eps is {model.config.layer_norm_eps}; this vision "
            f"encoder has {ours.layer_norm_eps} and no other"
        )
    return {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}


def _from_file(path: Path) -> dict[str, torch.Tensor]:
    weights: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what it meets: EOFError, zip and pickle errors
        raise UserError(
            f"{path} is no state dict ({str(error).splitlines()[0][:80]}); OpenAI's own files hold "
            "code: save their state_dict() as safetensors first"
        ) from error
    if "state_dict" in weights:  # as open_clip's trainer writes it
        weights = weights["state_dict"]
    renamed: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        name = name.removeprefix("module.")
        if name.startswith("visual."):
            renamed |= _renamed(name.removeprefix("visual."), value.float())
    return renamed


def _renamed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor of OpenAI's under the name of `transformers`; a fused one becomes three."""
    if name in STEM:
        return {STEM[name]: value}
    owner, _, kind = name.rpartition(".")  # kind: weight or bias
    if owner in STEM:
        return {f"{STEM[owner]}.{kind}": value}
    if not owner.startswith("transformer.resblocks."):
        return {}  # `proj`, which leads to the space shared with texts
    number, _, part = name.removeprefix("transformer.resblocks.").partition(".")
    prefix = f"encoder.layers.{number}."
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        return {  # (3 * width, ...) holds q, k, v in this order
            f"{prefix}self_attn.{proj}_proj.{kind}": chunk.clone()
            for proj, chunk in zip("qkv", value.chunk(3), strict=True)
        }
    part = part.rpartition(".")[0]
    return {f"{prefix}{BLOCK.get(part, part)}.{kind}": value}

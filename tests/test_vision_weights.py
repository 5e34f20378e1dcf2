"""Trained CLIPs of three kinds against formulas and classes that are not ours."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from mllm.errors import UserError
from mllm.model.config import VisionConfig
from mllm.model.vision import VisionEncoder
from mllm.stages import vision_stage
from mllm.vision_weights import load_vision_weights
from tests.conftest import World
from tests.scenarios import vision_config

# OpenAI's code fixes heads of 64.
CONFIG = VisionConfig(
    image_size=24, patch_size=8, width=128, num_layers=2, num_heads=2, mlp_dim=512
)


def openai_state_dict() -> dict[str, torch.Tensor]:
    """Names and shapes of a ViT in OpenAI's `clip/model.py`, with a text side beside it."""
    width, patches = CONFIG.width, 9
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (1,),
        "token_embedding.weight": (50, 64),
        "transformer.resblocks.0.ln_1.weight": (64,),  # the text side's blocks
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (patches + 1, width),
        "visual.proj": (width, 64),
        "visual.conv1.weight": (width, 3, 8, 8),
        "visual.ln_pre.weight": (width,),
        "visual.ln_pre.bias": (width,),
        "visual.ln_post.weight": (width,),
        "visual.ln_post.bias": (width,),
    }
    for i in range(CONFIG.num_layers):
        shapes |= {
            f"visual.transformer.resblocks.{i}.{name}": shape
            for name, shape in {
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "ln_1.weight": (width,),
                "ln_1.bias": (width,),
                "ln_2.weight": (width,),
                "ln_2.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
            }.items()
        }
    torch.manual_seed(0)
    return {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}


def openai_features(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """OpenAI's VisionTransformer.forward up to the last block, then ln_post on all tokens."""
    own = {k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (CONFIG.width,), own[f"{name}.weight"], own[f"{name}.bias"])

    x = F.conv2d(pixels, own["conv1.weight"], stride=8).flatten(2).permute(0, 2, 1)
    x = torch.cat((own["class_embedding"].expand(len(x), 1, -1), x), 1)
    x = norm(x + own["positional_embedding"], "ln_pre").permute(1, 0, 2)  # NLD -> LND
    for i in range(CONFIG.num_layers):
        block = f"transformer.resblocks.{i}."
        attention = torch.nn.MultiheadAttention(CONFIG.width, CONFIG.width // 64)
        attention.load_state_dict(
            {
                k.removeprefix(f"{block}attn."): v
                for k, v in own.items()
                if k.startswith(f"{block}attn.")
            }
        )
        h = norm(x, f"{block}ln_1")
        x = x + attention(h, h, h, need_weights=False)[0]
        h = F.linear(
            norm(x, f"{block}ln_2"), own[f"{block}mlp.c_fc.weight"], own[f"{block}mlp.c_fc.bias"]
        )
        h = h * torch.sigmoid(1.702 * h)
        x = x + F.linear(h, own[f"{block}mlp.c_proj.weight"], own[f"{block}mlp.c_proj.bias"])
    return norm(x.permute(1, 0, 2), "ln_post")


@pytest.mark.parametrize("form", ["safetensors", "pt", "trainer"])
def test_an_openai_state_dict_gives_openais_features(tmp_path: Path, form: str) -> None:
    weights = openai_state_dict()
    path = tmp_path / ("clip.safetensors" if form == "safetensors" else "clip.pt")
    if form == "safetensors":
        save_file(weights, path)
    elif form == "pt":
        torch.save(weights, path)
    else:  # open_clip's trainer under DistributedDataParallel
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    encoder = VisionEncoder(dataclasses.replace(CONFIG, normalise_features=False)).eval()
    assert load_vision_weights(encoder, path) == 5 + 2 + 16 * CONFIG.num_layers
    pixels = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        expected = openai_features(weights, pixels)
        assert (encoder(pixels) - expected).abs().max() < 1e-4 * expected.abs().max()


VISION = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
}


def save_folder(folder: Path, kind: str, **changes: float) -> CLIPVisionModel:
    """A CLIP of `transformers`, whole or its vision side alone; gives back the vision side."""
    vision = CLIPVisionConfig(**{**VISION, **changes})
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    config = CLIPConfig(vision_config=vision.to_dict(), text_config=text)
    theirs = CLIPModel(config) if kind == "CLIPModel" else CLIPVisionModel(vision)
    theirs.eval().save_pretrained(folder)
    return theirs.vision_model if kind == "CLIPModel" else theirs


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel"])
def test_a_transformers_folder_gives_its_features(tmp_path: Path, kind: str) -> None:
    theirs = save_folder(tmp_path, kind)
    encoder = VisionEncoder(dataclasses.replace(CONFIG, normalise_features=False)).eval()
    load_vision_weights(encoder, tmp_path)
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        pooled = theirs(pixels).pooler_output  # ln_post of CLS
        assert (encoder(pixels)[:, 0] - pooled).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel"])
def test_a_folder_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    """`transformers` fills what is missing with random values and goes on."""
    save_folder(tmp_path, kind)
    weights = load_file(tmp_path / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("layers.1.mlp.fc2.weight"))
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its CLIP's tensors: .*layers.1.mlp.fc2.weigh"):
        load_vision_weights(VisionEncoder(CONFIG), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "has gelu where model.vision.activation is quick_gelu"),
        ({"num_attention_heads": 4}, "has 4 where model.vision.num_heads is 2"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06; this vision encoder has 1e-05"),
    ],
)
def test_what_a_folders_config_says_otherwise_is_refused(
    tmp_path: Path, changes: dict, said: str
) -> None:
    save_folder(tmp_path, "CLIPVisionModel", **changes)
    with pytest.raises(UserError, match=said):
        load_vision_weights(VisionEncoder(CONFIG), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_layers": 3}, "lacks 16 of the vision encoder's tensors: encoder.layers.2"),
        ({"num_layers": 1}, "has encoder.layers.1"),
        ({"image_size": 32}, r"position_embedding.weight of \[10, 128\], .* \[17, 128\]"),
    ],
)
def test_other_sizes_are_refused_by_name(tmp_path: Path, change: dict, said: str) -> None:
    save_file(openai_state_dict(), tmp_path / "clip.safetensors")
    encoder = VisionEncoder(dataclasses.replace(CONFIG, **change))
    with pytest.raises(UserError, match=said):
        load_vision_weights(encoder, tmp_path / "clip.safetensors")


def test_what_is_no_clip_is_refused_in_a_line(tmp_path: Path) -> None:
    encoder = VisionEncoder(CONFIG)
    (tmp_path / "junk.pt").write_bytes(b"no weights")
    (tmp_path / "junk.safetensors").write_bytes(b"no weights")
    torch.save({"module": torch.nn.Linear(1, 1)}, tmp_path / "code.pt")  # a pickle with code
    (tmp_path / "empty").mkdir()
    for name in ("junk.pt", "junk.safetensors", "code.pt", "empty", "absent.pt"):
        with pytest.raises(UserError) as raised:
            load_vision_weights(encoder, tmp_path / name)
        assert name in str(raised.value) and "\n" not in str(raised.value)


def test_the_vision_stage_begins_from_them_too(tmp_path: Path, world: World) -> None:
    save_file(openai_state_dict(), tmp_path / "clip.safetensors")
    config = vision_config(world.root, tmp_path / "run", 12)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vision=CONFIG))
    expected = VisionEncoder(CONFIG)
    load_vision_weights(expected, tmp_path / "clip.safetensors")
    config = dataclasses.replace(config, vision_weights=str(tmp_path / "clip.safetensors"))
    begun = vision_stage(config).objective.model.vision.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in expected.state_dict().items())

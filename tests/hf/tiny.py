"""A tiny tokenizer, a tiny model with random weights, and its export."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from mllm.export import write_model
from mllm.hf.load import load_export
from mllm.model.config import ModelConfig, VisionConfig
from mllm.model.init import build
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import train

TEXT = (
    "An image of a red square. An image of a blue circle, on white.\n",
    "Question: what colour is it? Answer: red\n",
    "Question: is there a circle? Answer: no, not any more\n",
    "The quick brown fox jumps over the lazy dog; grapes, an owl and a red apple.\n",
)


def picture(seed: int, size: int = 24) -> Image.Image:
    """Noise, so that no two pictures look alike to a random model."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def make_tiny(root: Path) -> SimpleNamespace:
    """`engine` (a `MultimodalModel`), its `export` folder, and `model`, `processor` loaded from it,
    with the trainer's `tokenizer`."""
    (root / "tokenizer.model").write_bytes(train(iter(TEXT * 4), 310))
    tokenizer = Tokenizer(root)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        seq_len=128,
        model_dim=32,
        num_layers=2,
        num_heads=4,
        ffn_dim=64,
        num_latents=4,
        vision=VisionConfig(
            image_size=16, patch_size=8, width=32, num_layers=2, num_heads=2, mlp_dim=64
        ),
    )
    engine = build(config, seed=0).eval()
    with torch.no_grad():
        # Larger latents, so that random weights already tell pictures apart.
        engine.resampler.x_attn.out_proj.weight *= 20
    write_model(
        root / "export", engine.state_dict(), config, root / "tokenizer.model", resize="squash"
    )
    model, processor = load_export(root / "export")
    return SimpleNamespace(
        root=root,
        export=root / "export",
        config=config,
        engine=engine,
        tokenizer=tokenizer,
        model=model,
        processor=processor,
    )

"""A tiny tokenizer, a tiny model with random weights, and its export."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from mllm.hf.load import load_export
from mllm.hf.write import write_model
from mllm.model.config import ModelConfig, VisionConfig
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, SLOT_ID
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import train

TEXT = (
    "An image of a red square. An image of a blue circle, on white.\n",
    "Question: what colour is it? Answer: red\n",
    "Question: is there a circle? Answer: no, not any more\n",
    "The quick brown fox jumps over the lazy dog; grapes, an owl and a red apple.\n",
)

CONFIG = ModelConfig(
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


def picture(seed: int, size: int = 24) -> Image.Image:
    """Noise, so that no two pictures look alike to a random model."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def learn_text(engine: MultimodalModel, tokenizer: Tokenizer, num_steps: int) -> None:
    """Trains on TEXT, each line after a picture of its own."""
    optimizer = torch.optim.AdamW(engine.parameters(), lr=3e-3)
    torch.manual_seed(0)
    pixels = torch.randn(len(TEXT), 1, 3, engine.config.vision.image_size, 16)
    slots = [BOI_ID, *[SLOT_ID] * engine.config.num_latents, EOI_ID]
    for step in range(num_steps):
        i = step % len(TEXT)
        ids = torch.tensor([[BOS_ID, *slots, *tokenizer.encode(TEXT[i]), EOS_ID]])
        latents = engine.encode_images(pixels[i])
        embeddings = engine.embed(ids, ids == SLOT_ID, latents)
        hidden = engine.decoder(embeddings, torch.arange(ids.shape[1])[None])
        first = 1 + len(slots)
        total, losses = engine.head(hidden[0, first - 1 : -1], ids[0, first:])
        optimizer.zero_grad()
        (total / len(losses)).backward()
        optimizer.step()


def make_tiny(root: Path, num_steps: int = 0, **changes: Any) -> SimpleNamespace:
    """`engine` (a `MultimodalModel`), its `export` folder, and `model`, `processor` loaded from it,
    with the trainer's `tokenizer`.

    Args:
        num_steps: of training on TEXT, so that logits are far from each other.
        changes: of the `ModelConfig`.
    """
    (root / "tokenizer.model").write_bytes(train(iter(TEXT * 4), 310))
    tokenizer = Tokenizer(root)
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size, **changes)
    engine = build(config, seed=0).eval()
    with torch.no_grad():
        # Larger latents, so that random weights already tell pictures apart.
        if config.resampler == "attention":
            engine.resampler.x_attn.out_proj.weight *= 20
    if num_steps:
        learn_text(engine, tokenizer, num_steps)
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

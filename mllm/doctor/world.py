"""A small world made on the spot: three corpora of coloured pictures and words, and a tokenizer."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from corpora.document import Document, ImageSegment, Segment, TextSegment
from corpora.shards import ShardWriter
from mllm.config import Config, parse_config
from tokenizer.train import train_tokenizer

SENTENCE = """
a red and a blue boat went out on the lake before it was light while two old men sat on the wall
with bread cheese apples and talked about snow that would come from the north that week
"""
WORDS = SENTENCE.split()
VOCAB_SIZE = 300
NUM_STEPS = 6  # of each training run
SAVED_AT = 3  # the step from which a run is resumed
MODEL = {
    "vocab_size": VOCAB_SIZE,
    "seq_len": 128,
    "model_dim": 48,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_dim": 96,
    "num_latents": 4,
    "dropout": 0.1,  # its masks follow from each row's seed, so splits must agree with it on
    "attention_dropout": 0.0,
    "vision": {
        "image_size": 24,
        "patch_size": 8,
        "width": 32,
        "num_layers": 2,
        "num_heads": 2,
        "mlp_dim": 64,
    },
}


def make_world(root: Path) -> None:
    """Writes and indexes the corpora, and trains the tokenizer, in a few seconds."""
    draws = np.random.default_rng(0)
    for name, documents in (
        ("pairs", _pairs(draws)),
        ("text", _texts(draws)),
        ("interleaved", _interleaved(draws)),
    ):
        with ShardWriter(root / name, samples_per_shard=20) as writer:
            for document in documents:
                writer.write(document)
    corpora = [root / name for name in ("pairs", "text", "interleaved")]
    train_tokenizer(corpora, root / "tokenizer", VOCAB_SIZE, 1_000_000)


def world_config(
    root: Path, run_dir: Path, zero_stage: int = 1, micro_batch_size: int = 1
) -> Config:
    """A run of a few steps in that world: two parameter groups, frozen parameters, tied head."""
    sources = {"pairs": 0.4, "text": 0.4, "interleaved": 0.2}
    return parse_config(
        {
            "run_dir": str(run_dir),
            "tokenizer": str(root / "tokenizer"),
            "data": {
                "mixture": [
                    {"name": name, "path": str(root / name), "weight": weight}
                    for name, weight in sources.items()
                ],
                "augment": True,
                "num_workers": 0,
            },
            "model": MODEL,
            "zero": {"stage": zero_stage},
            "train": {
                "num_steps": NUM_STEPS,
                "global_batch_size": 4,
                "micro_batch_size": micro_batch_size,
                "precision": "fp32",
                "peak_lr": 3e-3,
                "warmup_steps": 2,
                "vision_lr_scale": 0.5,
                "checkpoint_every": SAVED_AT,
                "keep_checkpoints": 9,
            },
        },
        "doctor's own config",
    )


def picture(draws: np.random.Generator) -> ImageSegment:
    """A PNG of 24 x 24 pixels in 3 x 3 random colours."""
    coarse = draws.integers(0, 256, (3, 3, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((24, 24)).save(file, "PNG")
    return ImageSegment(file.getvalue())


def words(draws: np.random.Generator, num: int) -> str:
    return " ".join(draws.choice(WORDS, num))


def _pairs(draws: np.random.Generator) -> Iterator[Document]:
    for number in range(60):
        segments = (picture(draws), TextSegment(words(draws, 6)))
        yield Document(f"pair{number:03d}", segments)


def _texts(draws: np.random.Generator) -> Iterator[Document]:
    for number in range(60):
        length = int(draws.choice((3, 8, 20, 60, 200)))
        yield Document(f"text{number:03d}", (TextSegment(words(draws, length)),))


def _interleaved(draws: np.random.Generator) -> Iterator[Document]:
    for number in range(24):
        segments: list[Segment] = []
        for _ in range(int(draws.integers(1, 4))):
            text = TextSegment(words(draws, int(draws.integers(2, 12))) + " ")
            segments += [text, picture(draws)]
        segments.append(TextSegment(words(draws, 5)))
        yield Document(f"interleaved{number:03d}", tuple(segments))

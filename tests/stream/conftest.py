"""Streams over the tiny world, and faults planted into its corpora."""

import shutil
from pathlib import Path

import pytest
import yaml

from mllm.stream.source import Source
from mllm.stream.stream import TokenStream

SIZES = dict(seq_len=192, num_latents=4, global_batch_size=8, seed=5, image_size=16)


@pytest.fixture(scope="session")
def build(world):
    """`build(**changes)`: the four corpora mixed, some rows joined."""

    def build(**changes) -> TokenStream:
        sources = changes.pop(
            "sources",
            [
                Source("pairs", world.pairs, 0.5, 0.3),
                Source("text", world.text, 0.5),
                Source("interleaved", world.interleaved, 0.2, 1.0),
                Source("vqa", world.vqa, 0.2),
            ],
        )
        return TokenStream(sources, world.tokenizer, **{**SIZES, **changes})

    return build


@pytest.fixture(scope="session")
def stream(build):
    return build()


@pytest.fixture
def broken_pairs(world, tmp_path) -> Path:
    """A copy of the pairs in which one picture's bytes were overwritten after indexing."""
    from corpora.reader import Corpus

    copy = tmp_path / "pairs"
    shutil.copytree(world.pairs, copy)
    picture = Corpus(copy).document(3).images[0]
    shard = copy / Corpus(copy).shard_of(3)
    data = shard.read_bytes()
    offset = data.index(picture)  # drawings differ, so the first is sample 3's
    shard.write_bytes(data[:offset] + b"x" * len(picture) + data[offset + len(picture) :])
    return copy


@pytest.fixture
def config(world, tmp_path):
    values = {
        "run_dir": str(tmp_path / "run"),
        "tokenizer": str(world.tokenizer_dir),
        "seed": 3,
        "data": {
            "mixture": [
                {"name": "pairs", "path": str(world.pairs), "weight": 0.6, "join_documents": 0.5},
                {"name": "text", "path": str(world.text), "weight": 0.4},
            ]
        },
        "model": {"seq_len": 192, "num_latents": 4, "vision": {"image_size": 16, "patch_size": 8}},
        "train": {"micro_batch_size": 2, "global_batch_size": 8},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path

"""Our model and `transformers`' Kosmos-2 of one geometry, and the documents that both are fed."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from mllm.config import load_config
from mllm.engine_config import resolve_precision
from mllm.model.config import ModelConfig, VisionConfig
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from mllm.stream.batch import Batch
from mllm.stream.stream import TokenStream

DEMO_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo_cpu.yaml"
VISION = VisionConfig(
    image_size=64, patch_size=16, width=192, num_layers=3, num_heads=3, mlp_dim=768
)


def dtype() -> torch.dtype:
    """What a run with `train.precision: auto` computes in on this machine."""
    return torch.bfloat16 if resolve_precision("auto") == "bf16" else torch.float32


def geometry(**changes: object) -> ModelConfig:
    """The demo's sizes without dropout, with the positions that Kosmos-2 has."""
    values: dict = {
        "vocab_size": 4096,
        "seq_len": 512,
        "model_dim": 256,
        "num_layers": 4,
        "num_heads": 4,
        "ffn_dim": 1024,
        "num_latents": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "position": "sinusoidal",
        "vision": VISION,
    }
    return ModelConfig(**(values | changes))


def ours(config: ModelConfig) -> MultimodalModel:
    model = build(config, seed=0).to(dtype()).train()
    model.vision.freeze(train_last_blocks=1)
    return model


def theirs(config: ModelConfig) -> Kosmos2ForConditionalGeneration:
    vision = config.vision
    model = Kosmos2ForConditionalGeneration._from_config(
        Kosmos2Config(
            text_config={
                "vocab_size": config.vocab_size,
                "embed_dim": config.model_dim,
                "layers": config.num_layers,
                "ffn_dim": config.ffn_dim,
                "attention_heads": config.num_heads,
                "max_position_embeddings": config.seq_len,
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
            vision_config={
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp_dim,
                "num_hidden_layers": vision.num_layers,
                "num_attention_heads": vision.num_heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
            },
            latent_query_num=config.num_latents,
        ),
        attn_implementation="sdpa",
    )
    model = model.to(dtype()).train()
    # As ours: the last block of the vision encoder and its last norm are trained.
    model.vision_model.requires_grad_(False)
    model.vision_model.model.encoder.layers[-1].requires_grad_(True)
    model.vision_model.model.post_layernorm.requires_grad_(True)
    return model


@dataclass(frozen=True)
class Document:
    token_ids: torch.Tensor  # int64 (n,)
    slot_mask: torch.Tensor  # bool (n,); where latents stand
    loss_mask: torch.Tensor  # bool (n,); True where predicting the next token is scored


def documents(num: int, config: ModelConfig) -> list[Document]:
    """Lengths like the demo mixture's: three of five are captions of 14 to 40 positions, the others
    texts around 120, log-normal, at most a row.
    """
    draws = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(num):
        has_picture = bool(draws.random() < 0.6)
        length = draws.integers(14, 41) if has_picture else int(draws.lognormal(np.log(120), 0.8))
        shape = (min(max(8, int(length)), config.seq_len),)
        token_ids = torch.randint(8, config.vocab_size, shape, generator=generator)
        slot_mask = torch.zeros(shape, dtype=torch.bool)
        loss_mask = torch.arange(len(token_ids)) < len(token_ids) - 1
        if has_picture:
            slot_mask[2 : 2 + config.num_latents] = True
            loss_mask[: 2 + config.num_latents] = False
        made.append(Document(token_ids, slot_mask, loss_mask))
    return made


def demo_batches(num_steps: int) -> list[Batch] | None:
    """The first batches of the demo's mixture as the trainer packs them, with no documents joined
    into one context; None where the demo's corpus and tokenizer are not built.
    """
    config = load_config(DEMO_CONFIG, ["data.validation=[]"])
    is_built = all(Path(source.path, "index").is_dir() for source in config.data.mixture)
    if not is_built or not Path(config.tokenizer).is_dir():
        return None
    mixture = [
        {"name": source.name, "path": source.path, "weight": source.weight}
        for source in config.data.mixture
    ]
    changes = ["data.validation=[]", f"data.mixture={json.dumps(mixture)}"]
    stream = TokenStream.from_config(load_config(DEMO_CONFIG, changes))
    size = config.train.micro_batch_size
    return [
        stream.batch(step, micro_step, rank=0, world_size=1, micro_batch_size=size)
        for step in range(num_steps)
        for micro_step in range(stream.grad_accum_steps(1, size))
    ]


def documents_of(batches: list[Batch]) -> list[Document]:
    """Every document of packed rows by itself, in a drawn order."""
    found = []
    for batch in batches:
        for row in range(len(batch.token_ids)):
            ids = batch.document_ids[row]
            for number in range(int(ids.max()) + 1):
                span = ids == number
                found.append(
                    Document(
                        batch.token_ids[row][span],
                        batch.slot_mask[row][span],
                        batch.loss_mask[row][span],
                    )
                )
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]

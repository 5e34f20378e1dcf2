"""The vision stage: a ViT learns from captions by contrast (CLIP, arXiv 2103.00020)."""

from typing import Any

import torch

from mllm.config import Config
from mllm.model.contrastive import ContrastiveModel
from mllm.objectives import Contrastive
from mllm.optim import freeze
from mllm.stages.stage import Stage, preparation
from mllm.stages.validation import zero_shot
from mllm.stream.pairs import PairBatch, PairStream


def contrastive_model(config: Config) -> ContrastiveModel:
    """The model that a config of this stage names, with initial values from torch's generator."""
    settings = config.contrastive
    model = ContrastiveModel(
        config.model.vision,
        vocab_size=config.model.vocab_size,
        embed_dim=settings.embed_dim,
        initial_temperature=settings.initial_temperature,
        text=settings.text_sizes,
        text_len=settings.text_len,
    )
    freeze(model, config.train.freeze)
    return model


def vision_stage(config: Config) -> Stage:
    stream = PairStream(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = contrastive_model(config)

    def totals(batch: PairBatch, losses: torch.Tensor) -> list[float]:
        loss, right = losses.sum(1).tolist()
        return [loss, right, float(batch.is_used.sum()), float(batch.num_excluded)]

    def summary(values: list[float]) -> dict[str, Any]:
        loss, right, images, excluded = values
        return {
            "loss": loss / max(1.0, images),
            "accuracy": right / max(1.0, images),
            "temperature": float(torch.exp(-model.logit_scale.detach().float())),
            "images": int(images),
            "excluded_samples": int(excluded),
        }

    return Stage(
        objective=Contrastive(model),
        stream=stream,
        model_config={"vision": config.to_dict()["model"]["vision"]},
        num_totals=4,
        count=lambda batch: int(batch.is_used.sum()),
        totals=totals,
        summary=summary,
        prepare=preparation(config),
        validate=zero_shot(config, stream) if config.data.validation else None,
    )

"""The vision stage: a ViT learns from captions by contrast (CLIP, arXiv 2103.00020)."""

from typing import Any

import torch

from mllm.config import Config
from mllm.model.contrastive import ContrastiveModel
from mllm.model.flops import forward_flops, text_flops
from mllm.objectives import Contrastive
from mllm.optim import freeze
from mllm.stages.stage import Stage, preparation
from mllm.stages.validation import zero_shot
from mllm.stream.pairs import PairBatch, PairStream
from mllm.vision_weights import load_vision_weights


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


def pair_flops(config: Config, num_pairs: int) -> dict[str, int]:
    """Operations of a step on so many of its pairs, forward and backward, by part."""
    settings = config.contrastive
    width, dim = config.model.vision.width, settings.embed_dim
    encoder = forward_flops(config.model, [], 1, 0)["vision"]
    text = text_flops(settings.text_sizes, settings.text_len, dim)
    return {
        "vision": 3 * num_pairs * encoder,
        "image_projection": 3 * num_pairs * 2 * width * dim,
        "text": 3 * num_pairs * text,
        "similarity": 3 * 2 * 2 * num_pairs * config.train.global_batch_size * dim,
    }


def vision_stage(config: Config) -> Stage:
    stream = PairStream(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = contrastive_model(config)
    if config.vision_weights:
        load_vision_weights(model.vision, config.vision_weights)

    def totals(batch: PairBatch, losses: torch.Tensor) -> list[float]:
        loss, right = losses.sum(1).tolist()
        num_used = int(batch.is_used.sum())
        flops = sum(pair_flops(config, num_used).values())
        return [loss, right, float(num_used), float(batch.num_excluded), float(flops)]

    def summary(values: list[float]) -> dict[str, Any]:
        loss, right, images, excluded, flops = values
        return {
            "loss": loss / max(1.0, images),
            "accuracy": right / max(1.0, images),
            "temperature": float(torch.exp(-model.logit_scale.detach().float())),
            "images": int(images),
            "excluded_samples": int(excluded),
            "flops": flops,
        }

    return Stage(
        objective=Contrastive(model),
        stream=stream,
        model_config={"vision": config.to_dict()["model"]["vision"]},
        num_totals=5,
        count=lambda batch: int(batch.is_used.sum()),
        totals=totals,
        summary=summary,
        prepare=preparation(config),
        validate=zero_shot(config, stream) if config.data.validation else None,
    )

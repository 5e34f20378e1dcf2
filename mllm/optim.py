"""Parameter groups and the learning-rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from mllm.config import Config, TrainConfig


def parameter_groups(module: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters in groups with an lr scale and a weight decay each.

    Every parameter decays, LayerNorms and biases included, as in the paper's code, unless
    `train.weight_decay_on` says otherwise; but not the contrastive stage's bag of token embeddings,
    whose rate is so high that they would fade.
    """
    train = config.train
    groups: dict[str, dict[str, Any]] = {
        "vision": {"lr_scale": train.vision_lr_scale, "weight_decay": train.weight_decay},
        "text embedding": {"lr_scale": config.contrastive.text_lr_scale, "weight_decay": 0.0},
        "rest": {"lr_scale": 1.0, "weight_decay": train.weight_decay},
    }
    for group in groups.values():
        group["params"] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if "vision" in name.split("."):
            owner = "vision"
        else:
            owner = "text embedding" if name.endswith("text.embedding.weight") else "rest"
        groups[owner]["params"].append(parameter)
    found = list(groups.values())
    if train.weight_decay_on == "matrices":
        found = [part for group in groups.values() for part in _without_vectors(group)]
    return [group for group in found if group["params"]]


def _without_vectors(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group's matrices, and apart from them what has one dimension, without weight decay."""
    matrices = [parameter for parameter in group["params"] if parameter.ndim > 1]
    vectors = [parameter for parameter in group["params"] if parameter.ndim < 2]
    return [{**group, "params": matrices}, {**group, "params": vectors, "weight_decay": 0.0}]


def build_optimizer(module: nn.Module, config: Config) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(module, config),
        lr=config.train.peak_lr,
        betas=config.train.adam_betas,
        eps=config.train.adam_eps,
    )


def learning_rate(train: TrainConfig, applied_steps: int) -> float:
    """Learning rate of the step after `applied_steps` applied ones: linear warm-up, then decay."""
    step = applied_steps + 1
    if step < train.warmup_steps:
        return train.peak_lr * step / train.warmup_steps
    if train.schedule == "constant":
        return train.peak_lr
    rest = max(1, train.num_steps - train.warmup_steps)
    progress = min(1.0, (step - train.warmup_steps) / rest)
    if train.schedule == "cosine":
        return train.peak_lr * 0.5 * (1 + math.cos(math.pi * progress))
    return train.peak_lr * (1 - progress)

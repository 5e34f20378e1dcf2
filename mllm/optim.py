"""Parameter groups and the learning-rate schedule."""

import math

import torch
from torch import nn

from mllm.config import TrainConfig


def parameter_groups(module: nn.Module, train: TrainConfig) -> list[dict]:
    """Trainable parameters: the vision encoder's, then the rest, each with its own lr scale.

    Every one decays, LayerNorms and biases included, as in the paper's code.
    """
    vision, rest = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_vision = "vision" in name.split(".")
            (vision if is_vision else rest).append(parameter)
    groups = [
        {"params": vision, "lr_scale": train.vision_lr_scale},
        {"params": rest, "lr_scale": 1.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(module, train),
        lr=train.peak_lr,
        betas=train.adam_betas,
        eps=train.adam_eps,
        weight_decay=train.weight_decay,
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

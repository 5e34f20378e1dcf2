"""Which parameters are trained, in which groups, and the learning-rate schedule."""

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mllm.config import Config, TrainConfig
from mllm.errors import UserError

# An objective holds the stage's model under this name; patterns leave it off.
OBJECTIVE_PREFIX = "model."


def freeze(module: nn.Module, patterns: list[str]) -> None:
    """`train.freeze`: parameters whose names match are not trained.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """
    named = list(_named(module))
    for pattern in patterns:
        matching = [p for name, p in named if fnmatchcase(name, pattern)]
        if not matching:
            raise UserError(f"train.freeze: no parameter matches {pattern!r}; {_examples(named)}")
        for parameter in matching:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter in named):
        raise UserError("train.freeze: nothing is left to train; take a pattern away")


def parameter_groups(module: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters in groups with an lr scale and a weight decay each.

    The first of `train.parameter_groups` that matches a parameter's name has it. Of the others,
    every one decays, LayerNorms and biases included, as in the paper's code, unless
    `train.weight_decay_on` says otherwise; but not the contrastive stage's bag of token embeddings,
    whose rate is so high that they would fade.

    Raises:
        UserError: a group matches no trainable parameter.
    """
    train = config.train
    asked: list[dict[str, Any]] = [
        {
            "lr_scale": group.lr_scale,
            "weight_decay": train.weight_decay
            if group.weight_decay is None
            else group.weight_decay,
            "params": [],
        }
        for group in train.parameter_groups
    ]
    groups: dict[str, dict[str, Any]] = {
        "vision": {"lr_scale": train.vision_lr_scale, "weight_decay": train.weight_decay},
        "text embedding": {"lr_scale": config.contrastive.text_lr_scale, "weight_decay": 0.0},
        "rest": {"lr_scale": 1.0, "weight_decay": train.weight_decay},
    }
    for group in groups.values():
        group["params"] = []
    trainable = [(name, p) for name, p in _named(module) if p.requires_grad]
    for name, parameter in trainable:
        place = _first_match(name, train)
        if place is not None:
            asked[place]["params"].append(parameter)
        elif "vision" in name.split("."):
            groups["vision"]["params"].append(parameter)
        else:
            owner = "text embedding" if name.endswith("text.embedding.weight") else "rest"
            groups[owner]["params"].append(parameter)
    for group, wanted in zip(asked, train.parameter_groups, strict=True):
        if not group["params"]:
            raise UserError(
                f"train.parameter_groups: no trainable parameter is left for {wanted.match}; "
                f"{_examples(trainable)}"
            )
    found = list(groups.values())
    if train.weight_decay_on == "matrices":
        found = [part for group in groups.values() for part in _without_vectors(group)]
    return [group for group in (*asked, *found) if group["params"]]


def _without_vectors(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group's matrices, and apart from them what has one dimension, without weight decay."""
    matrices = [parameter for parameter in group["params"] if parameter.ndim > 1]
    vectors = [parameter for parameter in group["params"] if parameter.ndim < 2]
    return [{**group, "params": matrices}, {**group, "params": vectors, "weight_decay": 0.0}]


def _first_match(name: str, train: TrainConfig) -> int | None:
    for place, group in enumerate(train.parameter_groups):
        if any(fnmatchcase(name, pattern) for pattern in group.match):
            return place
    return None


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters():
        yield name.removeprefix(OBJECTIVE_PREFIX), parameter


def _examples(named: list[tuple[str, nn.Parameter]]) -> str:
    names = [name for name, _ in named]
    return f"names are such as {', '.join(names[:: max(1, len(names) // 3)][:4])}"


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
    first = train.warmup_steps
    if train.schedule == "wsd":
        first = train.num_steps - train.decay_steps
    progress = min(1.0, max(0, step - first) / max(1, train.num_steps - first))
    share = 1 - progress
    if train.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    return train.peak_lr * (train.final_lr_share + (1 - train.final_lr_share) * share)

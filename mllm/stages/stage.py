"""One stage's parts, as the loop in train.py uses them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mllm import dist
from mllm.config import Config
from mllm.engine import Engine
from mllm.objectives import Contrastive, LanguageModelling
from mllm.stages.generation import Generate
from mllm.stream.augment import augment

# A stage validates with a function from the engine to fields of metrics.jsonl, of which
# "validation" is one: each holds scores by name.
Validate = Callable[[Engine], dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Stage:
    """One stage's parts, as the loop in train.py uses them."""

    objective: LanguageModelling | Contrastive  # its `model` holds every parameter
    stream: Any  # TokenStream or PairStream
    model_config: dict[str, Any]  # written into checkpoints
    num_totals: int  # length of what `totals` returns; the loop sums it over ranks
    count: Callable[[Any], int]  # what the step's loss is divided by
    totals: Callable[[Any, torch.Tensor], list[float]]
    summary: Callable[[list[float]], dict[str, Any]]
    prepare: Callable[[Any], Any]  # augmentation and the move to the device
    validate: Validate | None
    generate: Generate | None = None


def preparation(config: Config) -> Callable[[Any], Any]:
    """What is done to a batch before the forward pass: augmentation, then the move."""
    keeps_colours = torch.tensor([source.keep_colours for source in config.data.mixture])

    def prepare(batch: Any) -> Any:
        if config.data.augment and batch.image_seeds:
            per_row = torch.tensor([row.images for row in batch.rows])
            is_kept = keeps_colours[batch.source_ids].repeat_interleave(per_row)  # (I,)
            batch = replace(batch, pixels=augment(batch.pixels, batch.image_seeds, is_kept))
        return batch.to(dist.device())

    return prepare

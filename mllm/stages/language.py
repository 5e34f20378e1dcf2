"""The language stages: next-token loss over text, pairs, interleaved documents and instructions.

`pretrain` and `instruct` read and train alike (K1 2.3, 3.3): of a conversation only the outputs are
scored, by the instruction template (mllm/stream/template.py), of every other document all text.
What `instruct` adds: it wants conversations, and its export asks in their template.
"""

from typing import Any

import torch

from mllm.config import Config
from mllm.errors import UserError
from mllm.model.flops import step_flops
from mllm.model.init import build
from mllm.objectives import LanguageModelling
from mllm.optim import freeze
from mllm.stages.generation import complete_captions
from mllm.stages.stage import Stage, preparation
from mllm.stages.validation import token_loss
from mllm.stream.batch import Batch
from mllm.stream.stream import TokenStream
from mllm.vision_weights import load_vision_weights


def language_stage(config: Config) -> Stage:
    stream = TokenStream.from_config(config)
    if config.stage == "instruct" and not any(source.has_turns for source in stream.sources):
        raise UserError(
            "stage instruct: no source of data.mixture holds conversations (samples with `turns`); "
            "add one by `mllm corpora import instruct`, or use stage pretrain"
        )
    model = build(config.model, config.seed)
    if config.vision_weights:
        load_vision_weights(model.vision, config.vision_weights)
    model.vision.freeze(config.train.train_last_blocks)
    freeze(model, config.train.freeze)
    model.set_execution(
        attention_backend=config.train.attention_backend,
        activation_checkpointing=config.train.activation_checkpointing,
        compile=config.train.compile,
    )
    names = stream.source_names

    def totals(batch: Batch, losses: torch.Tensor) -> list[float]:
        return [
            *_by_source(batch, losses, len(names)),
            float(batch.token_ids.numel()),
            float((batch.document_ids >= 0).sum()),
            float(batch.num_images),
            float(batch.num_excluded),
            float(_flops(config, batch)),
        ]

    def summary(values: list[float]) -> dict[str, Any]:
        losses, counts = values[: len(names)], values[len(names) : 2 * len(names)]
        tokens, useful, images, excluded, flops = values[2 * len(names) :]
        return {
            "loss": sum(losses) / max(1.0, sum(counts)),
            "loss_by_source": {
                name: loss / count
                for name, loss, count in zip(names, losses, counts, strict=True)
                if count
            },
            "tokens_by_source": dict(zip(names, map(int, counts), strict=True)),
            "scored_tokens": int(sum(counts)),
            "tokens": int(tokens),
            "useful_tokens": int(useful),
            "padding": round(1 - useful / tokens, 5),
            "images": int(images),
            "excluded_samples": int(excluded),
            "flops": flops,
        }

    return Stage(
        objective=LanguageModelling(model),
        stream=stream,
        model_config=config.model.to_dict(),
        num_totals=2 * len(names) + 5,
        count=lambda batch: int(batch.loss_mask.sum()),
        totals=totals,
        summary=summary,
        prepare=preparation(config),
        validate=token_loss(config) if config.data.validation else None,
        generate=complete_captions(config, model),
    )


def _by_source(batch: Batch, losses: torch.Tensor, num_sources: int) -> list[float]:
    """Summed loss of each source, then its scored positions."""
    sources = batch.source_ids[:, None].expand_as(batch.loss_mask)[batch.loss_mask]
    sums = torch.zeros(num_sources, dtype=torch.float64)
    sums.index_add_(0, sources, losses.double().cpu())
    return sums.tolist() + torch.bincount(sources, minlength=num_sources).tolist()


def _flops(config: Config, batch: Batch) -> int:
    """Operations of a step on the batch, all parts; padding is no use and does not count."""
    ids = batch.document_ids
    numbers = ids + torch.arange(len(ids))[:, None] * (ids.shape[1] + 1)
    lengths = torch.bincount(numbers[ids >= 0])
    flops = step_flops(
        config.model,
        lengths[lengths > 0].tolist(),
        batch.num_images,
        int(batch.loss_mask.sum()),
        config.train.train_last_blocks,
    )
    return sum(flops.values())

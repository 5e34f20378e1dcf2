"""What differs between stages: objective, stream, what is counted and logged, how it validates."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from corpora.reader import Corpus
from mllm import dist
from mllm.config import Config, SourceConfig
from mllm.engine import Engine
from mllm.errors import UserError
from mllm.images import normalise
from mllm.model.contrastive import ContrastiveModel
from mllm.model.init import build
from mllm.objectives import Contrastive, LanguageModelling
from mllm.stream.augment import augment
from mllm.stream.batch import Batch
from mllm.stream.pairs import PairBatch, PairStream
from mllm.stream.source import Source
from mllm.stream.stream import TokenStream, stream_settings
from mllm.vision_weights import load_vision_weights
from tokenizer.tokenizer import Tokenizer

# A stage validates with a function from the engine to named scores.
Validate = Callable[[Engine], dict[str, float]]

ZERO_SHOT_QUERIES = 500


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


def build_stage(config: Config) -> Stage:
    """Checks the tokenizer against the model and builds the stage that `config.stage` names."""
    tokenizer = Tokenizer(config.tokenizer)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size} but {config.tokenizer} has "
            f"{tokenizer.vocab_size} pieces; set model.vocab_size to that"
        )
    return _vision(config) if config.stage == "vision" else _pretrain(config)


def _prepare(config: Config) -> Callable[[Any], Any]:
    keeps_colours = torch.tensor([source.keep_colours for source in config.data.mixture])

    def prepare(batch: Any) -> Any:
        if config.data.augment and batch.image_seeds:
            per_row = torch.tensor([row.images for row in batch.rows])
            is_kept = keeps_colours[batch.source_ids].repeat_interleave(per_row)  # (I,)
            batch = replace(batch, pixels=augment(batch.pixels, batch.image_seeds, is_kept))
        return batch.to(dist.device())

    return prepare


# ------------------------------------------------------------------------------------- pretrain
def _pretrain(config: Config) -> Stage:
    stream = TokenStream.from_config(config)
    model = build(config.model, config.seed)
    if config.vision_weights:
        load_vision_weights(model.vision, config.vision_weights)
    model.vision.freeze(config.train.train_last_blocks)
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
        ]

    def summary(values: list[float]) -> dict[str, Any]:
        losses, counts = values[: len(names)], values[len(names) : 2 * len(names)]
        tokens, useful, images, excluded = values[2 * len(names) :]
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
        }

    return Stage(
        objective=LanguageModelling(model),
        stream=stream,
        model_config=config.model.to_dict(),
        num_totals=2 * len(names) + 4,
        count=lambda batch: int(batch.loss_mask.sum()),
        totals=totals,
        summary=summary,
        prepare=_prepare(config),
        validate=_token_loss(config) if config.data.validation else None,
    )


def _by_source(batch: Batch, losses: torch.Tensor, num_sources: int) -> list[float]:
    """Summed loss of each source, then its scored positions."""
    sources = batch.source_ids[:, None].expand_as(batch.loss_mask)[batch.loss_mask]
    sums = torch.zeros(num_sources, dtype=torch.float64)
    sums.index_add_(0, sources, losses.double().cpu())
    return sums.tolist() + torch.bincount(sources, minlength=num_sources).tolist()


def _token_loss(config: Config) -> Validate:
    """Nats per scored token of each validation source, over the same rows every time."""

    def stream_of(source: SourceConfig) -> TokenStream:
        settings = stream_settings(config)
        settings.update(global_batch_size=_validation_rows(config), seed=0, excluded_steps=())
        if config.data.index_dir:
            settings["index_dir"] = f"{config.data.index_dir}/validation"
        return TokenStream([Source(source.name, source.path, 1.0)], **settings)

    streams = {source.name: stream_of(source) for source in config.data.validation}

    def validate(engine: Engine) -> dict[str, float]:
        scores = {}
        for name, stream in streams.items():
            loss, count = 0.0, 0.0
            micro = config.train.micro_batch_size
            for micro_step in range(stream.grad_accum_steps(dist.world_size(), micro)):
                batch = stream.batch(
                    0,
                    micro_step,
                    rank=dist.rank(),
                    world_size=dist.world_size(),
                    micro_batch_size=micro,
                )
                _, losses = engine(batch.to(dist.device()))
                loss += float(losses.sum())
                count += len(losses)
            loss, count = dist.all_reduce_sum([loss, count])
            scores[name] = loss / max(1.0, count)
        return scores

    return validate


def _validation_rows(config: Config) -> int:
    """`train.validation_rows`, rounded up so that ranks and micro-batches divide it."""
    at_once = dist.world_size() * config.train.micro_batch_size
    return -(-config.train.validation_rows // at_once) * at_once


# --------------------------------------------------------------------------------------- vision
def _vision(config: Config) -> Stage:
    stream = PairStream(config)
    settings = config.contrastive
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ContrastiveModel(
            config.model.vision,
            vocab_size=config.model.vocab_size,
            embed_dim=settings.embed_dim,
            initial_temperature=settings.initial_temperature,
        )

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
        prepare=_prepare(config),
        validate=_zero_shot(config, stream) if config.data.validation else None,
    )


def _zero_shot(config: Config, stream: PairStream) -> Validate:
    """Share of held-out pictures that lie nearest to their own caption among their candidates.

    Each sample's meta names its `answer` and `distractors`. Every rank computes all of it: ZeRO-3
    needs all ranks in every module call.
    """
    queries = []
    for source in config.data.validation:
        corpus = Corpus(source.path, config.data.index_of(source.name, is_validation=True))
        for i in np.linspace(0, len(corpus) - 1, min(len(corpus), ZERO_SHOT_QUERIES)).astype(int):
            document = corpus.document(int(i))
            candidates = [document.meta["answer"], *document.meta["distractors"]]
            queries.append((stream.pictures.decode(document.images[0]), candidates))
    num_candidates = len(queries[0][1])
    texts = [f"An image of {name}" for _, candidates in queries for name in candidates]

    def validate(engine: Engine) -> dict[str, float]:
        model = engine.module.model
        assert isinstance(model, ContrastiveModel)
        dtype = model.image_projection.weight.dtype
        num_right = 0
        for start in range(0, len(queries), 100):
            pictures = np.stack([pixels for pixels, _ in queries[start : start + 100]])
            pixels = normalise(torch.from_numpy(pictures).to(dist.device())).to(dtype)
            images = model.embed_images(pixels)  # (B, E)
            part = texts[start * num_candidates : (start + 100) * num_candidates]
            token_ids, lengths = (x.to(dist.device()) for x in stream.encode(part))
            names = model.embed_texts(token_ids, lengths).unflatten(0, (-1, num_candidates))
            scores = torch.einsum("be,bce->bc", images.float(), names.float())
            num_right += int((scores.argmax(1) == 0).sum())
        return {"zero_shot_5way": num_right / len(queries)}

    return validate

"""How stages validate: held-out loss of the language stages, held-out naming of the vision one."""

import math
from dataclasses import replace

import numpy as np
import torch

from corpora.reader import Corpus
from mllm import dist
from mllm.config import Config, SourceConfig
from mllm.engine import Engine
from mllm.images import normalise
from mllm.model.contrastive import ContrastiveModel
from mllm.stages.stage import Validate
from mllm.stream.pairs import PairStream
from mllm.stream.source import Source
from mllm.stream.stream import TokenStream, stream_settings

ZERO_SHOT_QUERIES = 500


def token_loss(config: Config) -> Validate:
    """Loss of each validation source, over the same rows every time and on any number of ranks.

    `validation` is in nats per scored token; `validation_bits_per_byte` spreads the same nats over
    the UTF-8 bytes of the text that was scored, which no tokenizer changes. `</s>` counts in both
    losses and has no bytes. A source without scored tokens has no score.
    """

    def stream_of(source: SourceConfig) -> TokenStream:
        settings = stream_settings(config)
        settings.update(global_batch_size=_validation_rows(config), seed=0, excluded_steps=())
        if config.data.index_dir:
            settings["index_dir"] = f"{config.data.index_dir}/validation"
        return TokenStream([Source(source.name, source.path, 1.0)], **settings)

    streams = {source.name: stream_of(source) for source in config.data.validation}

    def validate(engine: Engine) -> dict[str, dict[str, float]]:
        losses_by_source, bits_by_source = {}, {}
        for name, stream in streams.items():
            # No row twice, and none that only fills up the micro-batches of all ranks.
            num_rows = min(config.train.validation_rows, stream.sources[0].plan.num_rows)
            text_bytes = torch.from_numpy(stream.tokenizer.text_bytes)  # int64 (V,)
            nats, num_tokens, num_bytes = 0.0, 0.0, 0.0
            micro = config.train.micro_batch_size
            for micro_step in range(stream.grad_accum_steps(dist.world_size(), micro)):
                batch = stream.batch(
                    0,
                    micro_step,
                    rank=dist.rank(),
                    world_size=dist.world_size(),
                    micro_batch_size=micro,
                )
                is_counted = torch.tensor([info.row < num_rows for info in batch.rows])  # (B,)
                batch = replace(batch, loss_mask=batch.loss_mask & is_counted[:, None])
                _, losses = engine(batch.to(dist.device()))
                nats += float(losses.double().sum())
                num_tokens += len(losses)
                num_bytes += int(text_bytes[batch.target_ids[batch.loss_mask]].sum())
            nats, num_tokens, num_bytes = dist.all_reduce_sum([nats, num_tokens, num_bytes])
            if num_tokens:
                losses_by_source[name] = nats / num_tokens
            if num_bytes:
                bits_by_source[name] = nats / math.log(2) / num_bytes
        return {"validation": losses_by_source, "validation_bits_per_byte": bits_by_source}

    return validate


def _validation_rows(config: Config) -> int:
    """`train.validation_rows`, rounded up so that ranks and micro-batches divide it."""
    at_once = dist.world_size() * config.train.micro_batch_size
    return -(-config.train.validation_rows // at_once) * at_once


def zero_shot(config: Config, stream: PairStream) -> Validate:
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

    def validate(engine: Engine) -> dict[str, dict[str, float]]:
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
        return {"validation": {"zero_shot_5way": num_right / len(queries)}}

    return validate

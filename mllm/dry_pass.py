"""The worst micro-batch that the mixture can give, run once before the first step and thrown away.

Memory that will not do is told in the first minute, not when the longest rows with the most
pictures happen to meet on day three. Nothing of it stays: losses are bit-equal with it and without.
"""

import math
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from mllm import dist
from mllm.config import Config
from mllm.engine import Engine
from mllm.errors import UserError
from mllm.stages import Stage
from mllm.stream.batch import Batch
from mllm.stream.deal import deal
from mllm.stream.encode import image_span
from mllm.stream.pairs import PairBatch
from mllm.stream.stream import TokenStream
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, SLOT_ID


@dataclass(frozen=True)
class WorstCase:
    """A micro-batch of no data, and what it is in words."""

    batch: Batch | PairBatch
    text: str


def dry_pass(config: Config, stage: Stage, engine: Engine) -> None:
    """Runs the worst case forward and backward. All ranks call it, in training mode.

    Raises:
        UserError: the memory of this rank was not enough; says what to lower.
    """
    case = worst_case(config, stage)
    device = dist.device()
    is_cuda = device.type == "cuda"
    started = time.monotonic()
    try:
        with torch.random.fork_rng(devices=[device] if is_cuda else []):
            engine.rehearse(case.batch.to(device))
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory before the first step, in the dry pass over the largest micro-batch "
            f"there can be ({case.text}): {_what_to_lower(config)}; `mllm plan` says what takes it"
        ) from None
    peak = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most" if is_cuda else ""
    dist.say(f"dry pass over {case.text}: {time.monotonic() - started:.1f} s{peak}")


def worst_case(config: Config, stage: Stage) -> WorstCase:
    """All ranks call it: rank 0 looks through the plans, which may be large."""
    num_rows = config.train.micro_batch_size
    if config.stage == "vision":
        batch = _pair_batch(config)
        return WorstCase(batch, f"{num_rows} pairs of {config.contrastive.text_len} tokens")
    most = most_images(stage.stream, dist.world_size(), num_rows) if dist.rank() == 0 else 0
    num_images = dist.broadcast_object(most)
    return WorstCase(
        _language_batch(config, num_images),
        f"{num_rows} rows of {config.model.seq_len} positions with {num_images} pictures",
    )


def most_images(stream: TokenStream, world_size: int, micro_batch_size: int) -> int:
    """Pictures of the fullest micro-batch that any step can have.

    In a step a source has its share of the rows, give or take one at either end; the worst step
    takes each source's fullest row as often as it can, and is dealt like any other.
    """
    mixture = stream.state.segments[-1].sources
    period = sum(source.rows_per_period for source in mixture)
    counts = {source.name: source.rows_per_period for source in mixture}
    images: list[int] = []
    for source in stream.sources:
        share = Fraction(counts[source.name], period) * stream.global_batch_size
        num_rows = stream.global_batch_size if len(mixture) == 1 else math.ceil(share) + 1
        images += [int(source.plan.row_images.max())] * num_rows
    worst = np.array(sorted(images, reverse=True)[: stream.global_batch_size], dtype=np.int64)
    cells = deal(worst, np.zeros_like(worst), micro_batch_size)
    return int(worst[cells].sum(axis=1).max())


def _language_batch(config: Config, num_images: int) -> Batch:
    """Full rows of one document each, pictures first; all is scored but slots."""
    num_rows, seq_len = config.train.micro_batch_size, config.model.seq_len
    num_latents = config.model.num_latents
    shape = (num_rows, seq_len)
    picture = [BOI_ID, *[SLOT_ID] * num_latents, EOI_ID]
    token_ids = torch.full(shape, BOS_ID)
    for b in range(num_rows):
        count = num_images // num_rows + (b < num_images % num_rows)
        assert count * image_span(num_latents) <= seq_len
        token_ids[b, : count * len(picture)] = torch.tensor(picture * count, dtype=torch.int64)
    slot_mask = token_ids == SLOT_ID
    side = config.model.vision.image_size
    return Batch(
        token_ids=token_ids,
        target_ids=torch.full(shape, BOS_ID),
        loss_mask=~slot_mask.roll(-1, dims=1),
        positions=torch.arange(seq_len).expand(shape).contiguous(),
        document_ids=torch.zeros(shape, dtype=torch.int64),
        slot_mask=slot_mask,
        pixels=torch.zeros(max(1, num_images), 3, side, side, dtype=torch.uint8),
        num_images=num_images,
        source_ids=torch.zeros(num_rows, dtype=torch.int64),
        row_seeds=torch.arange(num_rows),
        image_seeds=[0] * num_images,
        rows=[],
    )


def _pair_batch(config: Config) -> PairBatch:
    num_pairs, text_len = config.train.micro_batch_size, config.contrastive.text_len
    side = config.model.vision.image_size
    return PairBatch(
        pixels=torch.zeros(num_pairs, 3, side, side, dtype=torch.uint8),
        token_ids=torch.full((num_pairs, text_len), BOS_ID),
        lengths=torch.full((num_pairs,), text_len),
        caption_ids=torch.arange(num_pairs),
        is_used=torch.ones(num_pairs, dtype=torch.bool),
        source_ids=torch.zeros(num_pairs, dtype=torch.int64),
        image_seeds=[0] * num_pairs,
        rows=[],
    )


def _is_out_of_memory(error: Exception) -> bool:
    """A CPU's allocator has no class of its own for it."""
    is_known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_known or "can't allocate memory" in str(error)


def _what_to_lower(config: Config) -> str:
    train, hints = config.train, []
    if train.micro_batch_size > 1 and config.stage != "vision":
        hints.append(f"lower train.micro_batch_size (now {train.micro_batch_size})")
    if config.stage == "vision":
        hints.append("take more ranks and a lower train.micro_batch_size")
    elif train.activation_checkpointing != "full":
        hints.append(
            f"set train.activation_checkpointing to full (now {train.activation_checkpointing})"
        )
    if config.zero.stage < 3:
        hints.append(f"raise zero.stage (now {config.zero.stage})")
    return ", ".join(hints) or "lower model.seq_len, or offload with zero.config"

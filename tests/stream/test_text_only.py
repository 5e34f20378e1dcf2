"""The text-only control reads, step by step, the text of the mixed run (configs/text_only.yaml)."""

import pytest
import torch

from mllm.config import load_config
from mllm.stream.source import Source
from mllm.stream.stream import TokenStream
from tests.test_config import FILES

SIZES = {"seq_len": 192, "num_latents": 4, "image_size": 16, "seed": 5, "unit": "rows"}
FIELDS = ("token_ids", "target_ids", "loss_mask", "positions", "document_ids")


def stream_of(world, weights, global_batch_size, **changes) -> TokenStream:
    sources = [Source(name, getattr(world, name), weights[name], 0.5) for name in weights]
    settings = {**SIZES, "global_batch_size": global_batch_size, **changes}
    return TokenStream(sources, world.tokenizer, **settings)


def text_rows(stream: TokenStream, step: int) -> list[tuple[torch.Tensor, ...]]:
    """The rows of text of a step, in global order."""
    size = stream.global_batch_size
    batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=size)
    rows = [b for b, info in enumerate(batch.rows) if info.source == "text"]
    rows.sort(key=lambda b: batch.rows[b].row)
    return [tuple(getattr(batch, field)[b] for field in FIELDS) for b in rows]


def same(one, two) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.fixture(scope="module")
def mixed(world) -> TokenStream:
    return stream_of(world, {"text": 5, "pairs": 5, "interleaved": 2}, 24)


def test_each_step_has_the_text_of_the_mixed_runs_step(world, mixed):
    alone = stream_of(world, {"text": 1}, 10)
    assert alone.sources[0].plan.num_rows < 10 * 24  # several epochs
    for step in (0, 1, 7, 23, 10_000):
        rows = text_rows(alone, step)
        assert len(rows) == 10 and same(rows, text_rows(mixed, step))


@pytest.mark.parametrize(
    "changes", [{"seed": 6}, {"global_batch_size": 12}], ids=["another seed", "another batch"]
)
def test_otherwise_it_is_other_text(world, mixed, changes):
    other = stream_of(world, {"text": 1}, **{"global_batch_size": 10, **changes})
    assert not same(text_rows(other, 3)[:10], text_rows(mixed, 3))


def test_the_presets_agree_in_all_that_decides_the_text():
    mixed, alone = (
        load_config(FILES[0].with_name(name), ["data.unit=rows"])
        for name in ("kosmos1_1.6b.yaml", "text_only.yaml")
    )
    weights = {source.name: source.weight for source in mixed.data.mixture}
    share = weights["text"] / sum(weights.values())
    assert alone.train.global_batch_size == pytest.approx(mixed.train.global_batch_size * share)
    (text,) = alone.data.mixture
    (theirs,) = (source for source in mixed.data.mixture if source.name == "text")
    assert (text.path, text.join_documents) == (theirs.path, theirs.join_documents)
    for key in ("seed", "tokenizer", "model"):
        assert getattr(alone, key) == getattr(mixed, key)
    for key in ("num_steps", "peak_lr", "warmup_steps", "schedule", "weight_decay"):
        assert getattr(alone.train, key) == getattr(mixed.train, key)

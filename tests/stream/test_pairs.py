"""The vision stage's batches: one stream for every world size, every pair once an epoch."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corpora.reader import Corpus
from mllm.errors import UserError
from mllm.stream.pairs import PairStream
from tests.conftest import World
from tests.scenarios import vision_config


@pytest.fixture(scope="module")
def stream(world: World) -> PairStream:
    return PairStream(vision_config(world.root, Path("unused"), 12))


def keys(stream: PairStream, step: int, world_size: int) -> list[str]:
    size = stream.global_batch_size // world_size
    batches = [
        stream.batch(step, rank=rank, world_size=world_size, micro_batch_size=size)
        for rank in range(world_size)
    ]
    return [key for batch in batches for row in batch.rows for key in row.samples]


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_the_pairs_of_a_step_are_the_same_on_any_world_size(
    stream: PairStream, world_size: int
) -> None:
    for step in (0, 7, 10**7):
        assert keys(stream, step, world_size) == keys(stream, step, 1)


def test_every_pair_comes_once_an_epoch_in_another_order(stream: PairStream) -> None:
    epochs = [
        [key for step in range(first, first + 5) for key in keys(stream, step, 1)]
        for first in (0, 5)
    ]
    for epoch in epochs:
        assert set(Counter(epoch).values()) == {1} and len(epoch) == 60
    assert epochs[0] != epochs[1]


def test_neighbours_stay_together_and_still_come_once_an_epoch(world: World) -> None:
    config = vision_config(world.root, Path("unused"), 12)
    paired = PairStream(replace(config, contrastive=replace(config.contrastive, group_size=2)))
    order = [key for step in range(5) for key in keys(paired, step, 1)]
    assert set(Counter(order).values()) == {1} and len(order) == 60
    corpus = Corpus(world.pairs)
    place = {corpus.key(i): i for i in range(len(corpus))}
    for first, second in zip(order[::2], order[1::2], strict=True):
        assert place[first] % 2 == 0 and place[second] == place[first] + 1


def test_captions_are_closed_and_padded(stream: PairStream) -> None:
    token_ids, lengths = stream.encode(["An image of a red square.", "word " * 100])
    assert token_ids.shape == (2, stream.text_len)
    for ids, length in zip(token_ids, lengths, strict=True):
        assert ids[0] == 0 and ids[length - 1] == 2 and (ids[length:] == 1).all()
    assert lengths[1] == stream.text_len


def test_the_core_of_a_caption_is_between_prefix_and_end(world: World) -> None:
    config = vision_config(world.root, Path("unused"), 12)
    settings = replace(config.contrastive, caption_prefix="An image of", caption_end=",:.")
    stream = PairStream(replace(config, contrastive=settings))
    assert stream.core("An image of an owl: bird, wise.") == " an owl"
    assert stream.core("Seen at night") == "Seen at night"
    same, _ = stream.encode(["An image of an owl.", "An image of an owl, a bird."])
    assert torch.equal(same[0], same[1])


def test_equal_captions_get_equal_ids(stream: PairStream) -> None:
    batch = stream.batch(0, rank=0, world_size=1, micro_batch_size=12)
    same_text = (batch.token_ids[:, None] == batch.token_ids).all(-1)
    assert torch.equal(batch.caption_ids[:, None] == batch.caption_ids, same_text)


def test_gradient_accumulation_is_refused_with_the_sizes(stream: PairStream) -> None:
    with pytest.raises(UserError, match=r"2 ranks x train\.micro_batch_size 3 = 6"):
        stream.grad_accum_steps(2, 3)

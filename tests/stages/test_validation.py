"""Held-out loss by source, its bits per byte, and that looking at it leaves no trace."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpora.document import Document, TextSegment
from mllm import dist
from mllm.config import Config, SourceConfig
from mllm.stages.isolation import isolated
from mllm.stages.validation import token_loss
from mllm.stream.batch import Batch
from tests.conftest import World, square, write_corpus
from tests.scenarios import pretrain_config
from tokenizer.specials import EOS_ID, SPECIALS

TEXTS = (
    "plain words",
    "Café, naïve: 今日は\n\ttab  two spaces ",
    "🙂 and \U0001f468‍👩‍👧 x" * 3,
    "é",
)


def config_of(world: World, *sources: Path, seq_len: int = 128, **train: Any) -> Config:
    """The tests' config with these validation sources, named after their folders."""
    config = pretrain_config(world.root, Path("unused"))
    validation = [SourceConfig(path.name, str(path)) for path in sources]
    return replace(
        config,
        data=replace(config.data, validation=validation),
        model=replace(config.model, seq_len=seq_len),
        train=replace(config.train, **train),
    )


def loss_of(target_ids: torch.Tensor) -> torch.Tensor:
    """A made-up loss of each target, in nats."""
    return 1 + (target_ids % 7).float() / 4


class FakeEngine:
    """Gives `loss_of` the scored targets, and keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append(batch)
        losses = loss_of(batch.target_ids[batch.loss_mask])
        return losses.sum(), losses

    @property
    def targets(self) -> torch.Tensor:
        return torch.cat([b.target_ids[b.loss_mask] for b in self.batches])


def validated(config: Config) -> tuple[dict[str, dict[str, float]], FakeEngine]:
    engine = FakeEngine()
    return token_loss(config)(engine), engine  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- bits per byte


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_ids_are_the_bytes_of_the_text(world: World, text: str) -> None:
    ids = world.tokenizer.encode(text)
    assert world.tokenizer.text_bytes[ids].sum() == len(text.encode())
    assert any(map(world.tokenizer.is_byte, ids)) == (not text.isascii())


def test_special_tokens_have_no_bytes(world: World) -> None:
    assert not world.tokenizer.text_bytes[list(SPECIALS.values())].any()
    assert (world.tokenizer.text_bytes[len(SPECIALS) :] > 0).all()


def test_bits_per_byte_are_those_of_the_documents(world: World, tmp_path: Path) -> None:
    """Uncut documents: every scored segment's bytes, counted from the text itself."""
    draws = random.Random(0)
    documents = [
        Document(
            f"d{i:02}",
            (
                *((square("red"),) if i % 2 else ()),
                TextSegment(draws.choice(TEXTS), is_scored=i % 3 > 0),
                TextSegment(draws.choice(TEXTS)),
            ),
        )
        for i in range(30)
    ]
    corpus = write_corpus(tmp_path / "held_out", documents)
    scores, _ = validated(config_of(world, corpus, seq_len=512, validation_rows=16))
    scored = [s.text for d in documents for s in d.segments if getattr(s, "is_scored", False)]
    ids = [i for text in scored for i in world.tokenizer.encode(text)] + [EOS_ID] * 30
    nats = float(loss_of(torch.tensor(ids)).sum())
    num_bytes = sum(len(text.encode()) for text in scored)
    assert scores["validation"]["held_out"] == pytest.approx(nats / len(ids))
    expected = nats / math.log(2) / num_bytes
    assert scores["validation_bits_per_byte"]["held_out"] == pytest.approx(expected)


def test_cut_documents_count_the_bytes_of_what_is_scored(world: World, tmp_path: Path) -> None:
    """Every byte of a text is scored but those of the token that opens a later piece."""
    text = " ".join(TEXTS * 30)
    corpus = write_corpus(tmp_path / "long", [Document("long", (TextSegment(text),))])
    scores, engine = validated(config_of(world, corpus, validation_rows=64))
    ids = [*world.tokenizer.encode(text), EOS_ID]
    openers = ids[127::128]  # `<s>` stands before the first
    assert len(openers) > 10 and len(engine.targets) == len(ids) - len(openers)
    num_bytes = len(text.encode()) - world.tokenizer.text_bytes[openers].sum()
    nats = float(loss_of(engine.targets).double().sum())
    expected = nats / math.log(2) / num_bytes
    assert scores["validation_bits_per_byte"]["long"] == pytest.approx(expected)


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, 1), (2, 4), (3, 2)])
def test_any_number_of_ranks_scores_the_same_rows(
    world: World, monkeypatch: pytest.MonkeyPatch, world_size: int, micro_batch_size: int
) -> None:
    """5 rows are no multiple of theirs: the rows that fill up batches must not count."""
    config = config_of(world, world.text, world.vqa, validation_rows=5, micro_batch_size=1)
    alone, engine = validated(config)
    config = replace(config, train=replace(config.train, micro_batch_size=micro_batch_size))
    sums: list[list[float]] = []
    monkeypatch.setattr(dist, "all_reduce_sum", lambda values: sums.append(values) or values)
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    num_targets = 0
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        num_targets += len(validated(config)[1].targets)
    assert num_targets == len(engine.targets)
    for number, name in enumerate(("text", "vqa")):
        nats, num_tokens, num_bytes = np.sum(sums[number::2], axis=0)
        assert nats / num_tokens == pytest.approx(alone["validation"][name], rel=1e-9)
        bits = nats / math.log(2) / num_bytes
        assert bits == pytest.approx(alone["validation_bits_per_byte"][name], rel=1e-9)


def test_no_row_counts_twice_where_a_source_has_few(world: World, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "few", [Document("a", (TextSegment("a few words"),))])
    _, engine = validated(config_of(world, corpus, validation_rows=32))
    assert len(engine.targets) == len(world.tokenizer.encode("a few words")) + 1


def test_a_source_without_scored_tokens_has_no_score(world: World, tmp_path: Path) -> None:
    unscored = Document("a", (square("red"), TextSegment("what is it?", is_scored=False)))
    corpus = write_corpus(tmp_path / "unscored", [unscored])
    scores, engine = validated(config_of(world, corpus, world.text))
    assert not engine.batches[0].loss_mask.any()
    assert list(scores["validation"]) == list(scores["validation_bits_per_byte"]) == ["text"]


# ------------------------------------------------------------------------------- isolation


class Modes:
    def __init__(self) -> None:
        self.modes: list[bool] = []

    def train(self, mode: bool = True) -> None:
        self.modes.append(mode)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_what_validation_draws_moves_no_generator() -> None:
    engine = Modes()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()

    def put_back() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

    put_back()
    with pytest.raises(ZeroDivisionError), isolated(engine):  # type: ignore[arg-type]
        assert not torch.is_grad_enabled() and engine.modes == [False]
        draw()
        raise ZeroDivisionError
    assert torch.is_grad_enabled() and engine.modes == [False, True]
    assert draw() == expected
    put_back()
    draw()  # the same without the guard
    assert draw() != expected
    put_back()

"""What a model says of held-out pictures while it trains."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpora.document import Document, ImageSegment, Segment, TextSegment
from corpora.reader import Corpus
from mllm.config import Config, SourceConfig
from mllm.images import normalise, read_pixels
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from mllm.stages import generation
from mllm.stages.generation import completable, complete_captions
from mllm.stream.encode import encode
from tests.conftest import World, square, write_corpus
from tests.scenarios import pretrain_config
from tokenizer.specials import EOS_ID, SLOT_ID, SPECIALS

QUESTION = TextSegment("Question: what colour? Answer:", is_scored=False)


def config_of(world: World, *sources: Path, exclude: tuple[str, ...] = (), **train: Any) -> Config:
    """The tests' config with these validation sources, named after their folders."""
    config = pretrain_config(world.root, Path("unused"))
    validation = [SourceConfig(path.name, str(path)) for path in sources]
    train = {"generation_samples": 3, "generation_tokens": 12} | train
    return replace(
        config,
        data=replace(config.data, validation=validation, exclude=list(exclude)),
        train=replace(config.train, **train),
    )


def lively(config: Config) -> MultimodalModel:
    """A model whose greedy text varies from picture to picture."""
    model = build(config.model, seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6 if name.startswith("resampler") else 3)
    return model


@torch.no_grad()
def greedy(
    model: MultimodalModel, ids: list[int], pixels: np.ndarray, num_tokens: int
) -> list[int]:
    """New ids up to `</s>`: one prompt alone, a whole forward pass for every token."""
    begun, images = len(ids), normalise(torch.from_numpy(pixels))
    suppressed = [i for i in SPECIALS.values() if i != EOS_ID]
    for _ in range(num_tokens):
        token_ids = torch.tensor([ids])
        places = torch.arange(len(ids))[None]
        hidden = model(token_ids, token_ids == SLOT_ID, images, places)
        logits = model.head(hidden[:, -1])[0]
        logits[suppressed] = -math.inf
        if (chosen := int(logits.argmax())) == EOS_ID:
            break
        ids = [*ids, chosen]
    return ids[begun:]


def test_completions_are_the_greedy_ones_of_each_prompt_alone(world: World) -> None:
    """Against whole forward passes without cache, padding, batch or `transformers`."""
    config = config_of(world, world.pairs, world.text, world.interleaved, world.vqa)
    model = lively(config)
    complete = complete_captions(config, model)
    assert complete is not None
    samples = complete()
    assert [s["source"] for s in samples] == ["pairs"] * 3 + ["interleaved"] * 3 + ["vqa"] * 3
    assert len({s["completion"] for s in samples}) > 5
    size = config.model.vision.image_size
    for sample in samples:
        corpus = Corpus(world.root / sample["source"])
        document = corpus.document(corpus.keys.index(sample["key"]))
        texts = [getattr(segment, "text", "<image>") for segment in document.segments]
        begun = next(
            document.segments[:i]
            for i, text in enumerate(texts)
            if text == sample["reference"] and "".join(texts[:i]) == sample["prompt"]
        )
        sequence = encode(Document("x", begun), world.tokenizer, config.model.num_latents)
        pixels = np.stack([read_pixels(p, size, "squash") for p in sequence.images])
        new_ids = greedy(model, sequence.token_ids[:-1].tolist(), pixels, 12)
        assert sample["completion"] == world.tokenizer.decode(new_ids)
    assert complete() == samples


def segments(*parts: Segment | str) -> tuple[Segment, ...]:
    return tuple(TextSegment(part) if isinstance(part, str) else part for part in parts)


RED, BLUE = square("red"), square("blue")


@pytest.mark.parametrize(
    ("document", "prompt", "reference", "image"),
    [
        (segments(RED, "A red square."), "<image>", "A red square.", 0),
        (segments("Look: ", RED, " red"), "Look: <image>", " red", 0),
        (segments(RED, QUESTION, " red"), f"<image>{QUESTION.text}", " red", 0),
        (segments(RED, BLUE, " two"), "<image><image>", " two", 1),
        (segments(RED, " \n", BLUE, "blue"), "<image> \n<image>", "blue", 1),
        (segments(RED, "first", BLUE, "second"), "<image>", "first", 0),
    ],
)
def test_a_prompt_ends_before_the_first_scored_text_behind_a_picture(
    world: World, document: tuple[Segment, ...], prompt: str, reference: str, image: int
) -> None:
    config = config_of(world)
    found = completable(Document("k", document), "s", config, world.tokenizer)
    assert found is not None
    expected = {"source": "s", "key": "k", "image": image, "prompt": prompt}
    assert found.names == expected | {"reference": reference}
    assert len(found.pixels) == image + 1


@pytest.mark.parametrize(
    "document",
    [segments("text alone"), segments("before ", RED), segments(RED, QUESTION)]
    + [segments("long " * 200, RED, "red")],
)
def test_what_cannot_be_completed_is_passed_over(
    world: World, document: tuple[Segment, ...]
) -> None:
    assert completable(Document("k", document), "s", config_of(world), world.tokenizer) is None


def test_pictures_are_spread_and_bad_or_listed_ones_are_passed_over(
    world: World, tmp_path: Path
) -> None:
    documents = [Document(f"d{i}", segments(RED, f"number {i}")) for i in range(9)]
    documents[3] = Document("d3", segments(ImageSegment(b"GIF8 broken"), "number 3"))
    documents[4] = Document("d4", segments("no picture"))
    corpus = write_corpus(tmp_path / "held_out", documents)
    listed = tmp_path / "takedown.txt"
    listed.write_text("d0\n")
    config = config_of(world, corpus, exclude=(str(listed),))
    complete = complete_captions(config, lively(config))
    assert complete is not None
    # Three parts of 1, 2, 3 | 5, 6 | 7, 8: the first of each that can be read.
    assert [sample["key"] for sample in complete()] == ["d1", "d5", "d7"]


def test_nothing_is_built_where_there_is_nothing_to_complete(world: World) -> None:
    model = lively(config_of(world))
    assert complete_captions(config_of(world), model) is None
    assert complete_captions(config_of(world, world.text), model) is None
    assert complete_captions(config_of(world, world.pairs, generation_samples=0), model) is None


def test_a_line_a_step(tmp_path: Path) -> None:
    generation.append(tmp_path, 3, [{"completion": "é\n"}])
    generation.append(tmp_path, 6, [])
    generation.append(tmp_path, 9, [{"completion": "\ud800"}])  # half a surrogate pair
    lines = [json.loads(x) for x in (tmp_path / generation.FILE_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 9]

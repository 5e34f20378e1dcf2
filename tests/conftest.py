"""The tiny world: four small corpora of coloured squares and a tokenizer, made in seconds."""

import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from PIL import Image

from corpora.document import Document, ImageSegment, Segment, TextSegment
from corpora.shards import ShardWriter
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import train_tokenizer

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "grey": (128, 128, 128),
}
PLACES = ("top", "bottom", "left", "right", "middle")
SENTENCES = """
the quick brown fox jumps over a lazy dog while seven small birds sing in the old green tree
near our house and every morning children walk along the river to school with bread and milk
"""
WORDS = SENTENCES.split()


def pytest_configure() -> None:
    """Gives each of pytest-xdist's workers a core: two torch processes that share cores spin for
    each other's threads and take many times as long. Ranks and commands that a test starts inherit
    it.
    """
    if name := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(name.removeprefix("gw")) % len(cores)]})


@dataclass(frozen=True)
class World:
    """Folders of the tiny world; every corpus is indexed."""

    root: Path
    pairs: Path  # 60 x (picture, "An image of a red square.")
    text: Path  # 80 documents of 3 to 400 words
    interleaved: Path  # 24 documents with 1 to 4 pictures
    vqa: Path  # 30 pictures with questions (not scored) and answers (scored)
    tokenizer_dir: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_dir)


def square(colour: str, place: str = "middle") -> ImageSegment:
    """A 24 x 24 PNG: a square of that colour on white."""
    left = {"left": 0, "right": 12}.get(place, 6)
    top = {"top": 0, "bottom": 12}.get(place, 6)
    picture = Image.new("RGB", (24, 24), "white")
    picture.paste(COLOURS[colour], (left, top, left + 12, top + 12))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return ImageSegment(file.getvalue())


def write_corpus(
    out_dir: Path, documents: Iterator[Document] | list[Document], samples_per_shard: int = 20
) -> Path:
    with ShardWriter(out_dir, samples_per_shard=samples_per_shard) as writer:
        for document in documents:
            writer.write(document)
    return out_dir


def pair_documents(draws: random.Random, num: int) -> Iterator[Document]:
    for i in range(num):
        colour, place = draws.choice(list(COLOURS)), draws.choice(PLACES)
        caption = f"An image of a {colour} square" + draws.choice((".", f" at the {place}."))
        yield Document(f"pair{i:04d}", (square(colour, place), TextSegment(caption)))


def text_documents(draws: random.Random, num: int) -> Iterator[Document]:
    for i in range(num):
        words = draws.choices(WORDS, k=draws.choice((3, 8, 20, 60, 120, 400)))
        text = " ".join(words).capitalize() + draws.choice((".", "!\n\n  The end.", " \n"))
        yield Document(f"text{i:04d}", (TextSegment(text),))


def interleaved_documents(draws: random.Random, num: int) -> Iterator[Document]:
    for i in range(num):
        segments: list[Segment] = []
        for _ in range(draws.randint(1, 4)):
            colour = draws.choice(list(COLOURS))
            words = " ".join(draws.choices(WORDS, k=draws.randint(2, 30)))
            segments += [TextSegment(f"{words}, and a {colour} square: "), square(colour)]
        if draws.random() < 0.7:
            segments.append(TextSegment(" ".join(draws.choices(WORDS, k=10))))
        yield Document(f"interleaved{i:04d}", tuple(segments))


def vqa_documents(draws: random.Random, num: int) -> Iterator[Document]:
    for i in range(num):
        colour, place = draws.choice(list(COLOURS)), draws.choice(PLACES)
        segments: list[Segment] = [square(colour, place)]
        questions = (
            ("what colour is the square?", colour),
            ("where is it?", place),
            ("is it red?", "yes" if colour == "red" else "no"),
        )
        for number, (question, answer) in enumerate(questions[: draws.randint(1, 3)]):
            line = "\n" if number else ""
            segments.append(TextSegment(f"{line}Question: {question} Answer:", is_scored=False))
            segments.append(TextSegment(f" {answer}"))
        yield Document(f"vqa{i:04d}", tuple(segments))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    pairs = write_corpus(root / "pairs", pair_documents(random.Random(1), 60))
    text = write_corpus(root / "text", text_documents(random.Random(2), 80))
    interleaved = write_corpus(root / "interleaved", interleaved_documents(random.Random(3), 24))
    vqa = write_corpus(root / "vqa", vqa_documents(random.Random(4), 30))
    train_tokenizer([pairs, text, interleaved, vqa], root / "tokenizer", 360, 1_000_000)
    return World(root, pairs, text, interleaved, vqa, root / "tokenizer")

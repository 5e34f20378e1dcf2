"""Evaluation corpora of coloured squares, a fake model behind the door, and a tiny real export."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corpora.document import Document, ImageSegment, TextSegment
from corpora.shards import ShardWriter
from evals.api import (
    CandidateScore,
    Generated,
    GenerateRequest,
    RankRequest,
    TextScore,
)

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "grey": (128, 128, 128),
    "pink": (250, 150, 190),
    "brown": (120, 70, 20),
}


def png(colour: tuple[int, int, int], size: int = 16, mark: int = 0) -> bytes:
    """A plain square with one marked pixel, so that pictures of one colour can differ."""
    picture = Image.new("RGB", (size, size), colour)
    picture.putpixel((mark % size, mark // size), (255, 255, 255))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def colour_of(data: bytes) -> str:
    """The nearest colour name of a picture's middle."""
    with Image.open(io.BytesIO(data)) as picture:
        pixel = picture.convert("RGB").getpixel((8, 8))
    return min(
        COLOURS,
        key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], pixel, strict=True)),
    )


def naming_document(key: str, colour: str, mark: int) -> Document:
    names = list(COLOURS)
    others = [names[(names.index(colour) + step) % len(names)] for step in range(1, 5)]
    answer = f"a {colour} square"
    meta = {
        "concept": colour,
        "name": f"{colour} square",
        "answer": answer,
        "captions": [f"An image of {answer}.", f"An image of {answer}, on white."],
        "distractors": [f"a {other} square" for other in others],
    }
    return Document(key, (ImageSegment(png(COLOURS[colour], mark=mark)),), meta)


def write(folder: Path, documents: list[Document]) -> None:
    with ShardWriter(folder) as writer:
        for document in documents:
            writer.write(document)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the demo corpus that evaluations read."""
    root = tmp_path_factory.mktemp("data")
    names = list(COLOURS)
    for split, first in (("development", 100), ("final", 200)):
        write(
            root / "eval" / f"naming_{split}",
            [
                naming_document(f"{split}{i:03d}", names[i % 8], mark=first + i % 24)
                for i in range(24)
            ],
        )
    write(
        root / "eval" / "naming_support",
        [naming_document(f"train{i:03d}", names[i % 8], mark=i) for i in range(40)],
    )
    questions = [
        Document(
            f"vqa{i:03d}",
            (ImageSegment(png(COLOURS[names[i % 8]], mark=i)),),
            {"question": "what colour is it?", "answer": names[i % 8]},
        )
        for i in range(20)
    ]
    write(root / "eval" / "easy_vqa_test", questions)
    write(
        root / "eval" / "easy_vqa_support",
        [Document(d.key.replace("vqa", "vqatrain"), d.segments, d.meta) for d in questions],
    )
    turns = []
    for i in range(10):
        asked = TextSegment("Question: what colour is it? Answer:", is_scored=False)
        more = TextSegment("\nQuestion: is it round? Answer:", is_scored=False)
        answers = TextSegment(f" {'red' if i < 6 else 'blue'}"), TextSegment(" no")
        segments = (questions[i].segments[0], asked, answers[0], more, answers[1])
        turns.append(Document(f"turns{i}", segments))
    write(root / "vqa" / "train", turns)
    for split, num in (("train", 30), ("validation", 8)):
        texts = [f"The {names[i % 8]} fox number {i} jumps over the dog. " * 3 for i in range(num)]
        write(
            root / "text" / split,
            [Document(f"{split}{i}", (TextSegment(text),)) for i, text in enumerate(texts)],
        )
    return root


class FakeModel:
    """Sees colours perfectly: names, captions and answers by the colour of the query's picture.

    It counts what it is asked, so that a resumed run can be seen to ask less.
    """

    fingerprint = "fake"
    device = "cpu"
    dtype = "torch.float32"
    seq_len = 200
    max_positions = 200
    num_latents = 4
    image_size = 16
    resize = "squash"
    vocab_size = 256
    has_joined_rows = None

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.batches: list[list[str]] = []

    def _ask(self, ids: list[str]) -> None:
        self.asked += ids
        self.batches.append(ids)

    def loglikelihood(self, requests: Sequence[RankRequest]) -> list[list[CandidateScore]]:
        self._ask([request.prompt.query.id for request in requests])
        rows = []
        for request in requests:
            colour = colour_of(request.prompt.query.images[0])
            rows.append(
                [
                    CandidateScore(
                        text, -1.0 if colour in text else -30.0, 3, len(text) - 1, 9, -20.0
                    )
                    for text in request.candidates
                ]
            )
        return rows

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
        self._ask([request.prompt.query.id for request in requests])
        answers = []
        for request in requests:
            colour = colour_of(request.prompt.query.images[0])
            is_question = "Question" in request.prompt.query.segments[-1].text
            text = f" {colour}\nQuestion: more" if is_question else f" a {colour} square."
            answers.append(Generated(text, 4, False))
        return answers

    def image_features(self, pictures: Sequence[bytes]) -> np.ndarray:
        names = list(COLOURS)
        return np.eye(len(names), dtype=np.float32)[[names.index(colour_of(p)) for p in pictures]]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScore]:
        return [TextScore(-1.5 * len(text), len(text), len(text.encode())) for text in texts]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()

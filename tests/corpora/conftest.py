"""Corpora of coloured squares, small enough to write in milliseconds."""

import io
from pathlib import Path

import pytest
from PIL import Image

from corpora.document import Document, ImageSegment, TextSegment
from corpora.shards import ShardWriter


def square(colour: str | tuple[int, int, int], size: int = 8) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def coloured(number: int) -> Document:
    """A pair, a text or an interleaved document, by number."""
    image = ImageSegment(square((number * 37 % 256, number * 91 % 256, 40)))
    segments = (
        (image, TextSegment(f"square {number}")),
        (TextSegment(f"text of document {number}: " + "ü" * number),),
        (TextSegment("see "), image, TextSegment(" and "), image, TextSegment(f" {number}")),
    )[number % 3]
    return Document(f"sample-{number:04d}", segments, {"number": number})


@pytest.fixture
def documents() -> list[Document]:
    return [coloured(number) for number in range(25)]


@pytest.fixture
def corpus_dir(tmp_path: Path, documents: list[Document]) -> Path:
    """25 documents in three shards, with their index."""
    with ShardWriter(tmp_path / "corpus", samples_per_shard=10) as writer:
        for document in documents:
            writer.write(document)
    return tmp_path / "corpus"

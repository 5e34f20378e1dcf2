"""Corpora of coloured squares, small enough to write in milliseconds."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture(scope="module")
def demo_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A cache of invented packages, and the demo corpus built from it with one excluded name."""
    from corpora.demo import build, packages

    from .tiny_packages import EXCLUDED, write_wheels

    root = tmp_path_factory.mktemp("demo")
    cache, out, exclude = root / "cache", root / "corpus", root / "names.txt"
    exclude.write_text(f"# not this one\n{EXCLUDED}\n\n")
    with pytest.MonkeyPatch.context() as patch:
        table = write_wheels(cache)
        patch.setattr(packages, "PACKAGES", table)
        patch.setattr(build, "PACKAGES", table)
        assert build.build_demo(out, cache, exclude) is True
        yield SimpleNamespace(cache=cache, out=out, exclude=exclude, packages=table)

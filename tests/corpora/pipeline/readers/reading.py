"""Reads a source as an import does, without executors; pictures for foreign writers."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from corpora.document import Document, ImageSegment
from corpora.pipeline.readers import find_format
from corpora.pipeline.readers.base import ReadLog, ReadOptions


def read(
    kind: str, source: Path, unit_bytes: int = 1 << 20, forced: str | None = None, **options: Any
) -> tuple[list[Document], ReadLog]:
    """All documents of a source, and what was met."""
    found = find_format(kind, source, forced, ReadOptions(**options))
    log = ReadLog()
    parts = found.parts(source, unit_bytes)
    return [document for part in parts for document in found.read(part, log)], log


def name_of(kind: str, source: Path) -> str:
    return find_format(kind, source, None, ReadOptions()).name


def image(colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(buffer, kind)
    return buffer.getvalue()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def content(document: Document) -> list[Any]:
    """Segments as texts and encoded pictures."""
    return [s.data if isinstance(s, ImageSegment) else s.text for s in document.segments]

"""Pictures that are drawn here: text in DejaVu, and the encoding of all of them."""

import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


@cache
def font(size: int, is_bold: bool = False) -> Any:
    """DejaVu Sans as matplotlib ships it; a machine's own fonts would draw other pictures."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None and found.origin is not None, "matplotlib is a dependency"
    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    # Whether Raqm is there depends on the machine; the basic layout is the same everywhere.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def length(word: str, size: int) -> float:
    """How many pixels a word takes; few words make most of a text."""
    return float(font(size).getlength(word))


def wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; longer words are cut."""
    lines: list[str] = []
    left = 0.0  # pixels on the last line
    for word in text.split():
        if lines and (needed := length(" ", size) + length(word, size)) <= left:
            lines[-1] += f" {word}"
            left -= needed
            continue
        while length(word, size) > width:
            cut = next(n for n in range(len(word), 0, -1) if length(word[:n], size) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
        left = width - length(word, size)
    return lines


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white page in shades of grey, and the pen for it."""
    image = Image.new("L", (width, height), 255)
    return image, ImageDraw.Draw(image)

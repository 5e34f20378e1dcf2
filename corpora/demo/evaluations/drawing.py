"""Pictures that are drawn here: text in DejaVu, and the encoding of all of them."""

import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
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


def wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; longer words are cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(size).getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font(size).getlength(word) > width:
            cut = next(n for n in range(len(word), 0, -1) if font(size).getlength(word[:n]) < width)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return [line for line in lines if line]


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A white page in shades of grey, and the pen for it."""
    image = Image.new("L", (width, height), 255)
    return image, ImageDraw.Draw(image)

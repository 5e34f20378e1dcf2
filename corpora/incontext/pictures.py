"""Pictures of classes that have no name anywhere: a class is a pattern with its own colours.

A pattern is a mirrored grid of cells in an ink, on a textured paper of another hue. Pictures of
one class are moved, turned, scaled, recoloured a little and noisy: no two are equal, and what a
class is has to be seen. A class is the number of its pattern: two classes never share one.
"""

import colorsys
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from corpora.demo.chance import number

SIZE = 32  # pixels a side
OVERSAMPLING = 2  # drawn so many times larger, for smooth edges
ROWS, HALF = 5, 3  # cells of the drawn half of a pattern; its last column is the mirror's axis
INKED = range(5, 11)  # cells of that half: neither nearly empty nor nearly full
TEXTURES = ("plain", "stripes", "bars", "dots")
MAX_SHIFT = 0.08  # of the side
MAX_TURN = 15.0  # degrees
SCALE = (0.7, 0.9)  # of the side
MAX_HUE_SHIFT = 0.02  # of the colour wheel
MAX_VALUE_SHIFT = 0.08
NOISE = 8.0  # standard deviation, in levels of 0..255

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Prototype:
    """What the pictures of one class have in common."""

    cells: np.ndarray  # float (N, 2): middles of the inked cells, in cells from the centre
    ink_hue: float  # 0..1 on the colour wheel
    paper_hue: float
    is_ink_dark: bool
    texture: str


def classes() -> list[int]:
    """All classes there are."""
    return [code for code in range(1 << (ROWS * HALF)) if code.bit_count() in INKED]


@lru_cache(maxsize=4096)
def prototype(code: int) -> Prototype:
    draws = np.random.default_rng(number("prototype", str(code)))
    half = np.array([code >> bit & 1 for bit in range(ROWS * HALF)]).reshape(ROWS, HALF)
    whole = np.concatenate((half, half[:, :-1][:, ::-1]), axis=1)
    cells = np.argwhere(whole)[:, ::-1] - (np.array(whole.shape)[::-1] - 1) / 2
    ink_hue = draws.random()
    return Prototype(
        cells=cells,
        ink_hue=ink_hue,
        paper_hue=(ink_hue + draws.uniform(0.2, 0.8)) % 1.0,
        is_ink_dark=bool(draws.random() < 0.5),
        texture=TEXTURES[draws.integers(len(TEXTURES))],
    )


@lru_cache(maxsize=32768)  # episodes show a class's pictures again: 70 MB of PNG
def draw(code: int, instance: int) -> bytes:
    """PNG of one picture of a class, SIZE x SIZE, which (code, instance) decide."""
    what = prototype(code)
    draws = np.random.default_rng(number("picture", str(code), str(instance)))
    ink, paper, shade = _colours(what, draws)
    side = SIZE * OVERSAMPLING
    picture = Image.new("RGB", (side, side), paper)
    canvas = ImageDraw.Draw(picture)
    _draw_texture(canvas, what.texture, side, shade)
    for corners in _squares(what, side, draws).tolist():
        canvas.polygon(list(map(tuple, corners)), fill=ink)
    small = np.asarray(picture.reduce(OVERSAMPLING)).astype(np.float32)
    noise = draws.standard_normal(small.shape, dtype=np.float32)
    pixels = (small + NOISE * noise).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _squares(what: Prototype, side: int, draws: np.random.Generator) -> np.ndarray:
    """Corners of the inked cells on the canvas: float (N, 4, 2)."""
    cell = side * draws.uniform(*SCALE) / ROWS
    turn = np.deg2rad(draws.uniform(-MAX_TURN, MAX_TURN))
    centre = side * (0.5 + draws.uniform(-MAX_SHIFT, MAX_SHIFT, 2))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return (what.cells[:, None] + corners) * cell @ rotation + centre


def _colours(what: Prototype, draws: np.random.Generator) -> tuple[Colour, Colour, Colour]:
    """Ink, paper, and the texture on the paper."""

    def rgb(hue: float, saturation: float, value: float) -> Colour:
        hue += draws.uniform(-MAX_HUE_SHIFT, MAX_HUE_SHIFT)
        value += draws.uniform(-MAX_VALUE_SHIFT, MAX_VALUE_SHIFT)
        red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, min(1.0, value))
        return int(255 * red), int(255 * green), int(255 * blue)

    dark, light = (0.9, 0.45), (0.6, 0.95)  # saturation, value
    ink, paper = (dark, light) if what.is_ink_dark else (light, dark)
    shade = (paper[0], paper[1] * 0.75)
    return rgb(what.ink_hue, *ink), rgb(what.paper_hue, *paper), rgb(what.paper_hue, *shade)


def _draw_texture(canvas: ImageDraw.ImageDraw, texture: str, side: int, shade: Colour) -> None:
    width = side // 8
    for at in range(0, side, 2 * width):
        match texture:
            case "stripes":
                canvas.rectangle((0, at, side, at + width - 1), fill=shade)
            case "bars":
                canvas.rectangle((at, 0, at + width - 1, side), fill=shade)
            case "dots":
                for across in range(0, side, 2 * width):
                    canvas.rectangle((at, across, at + width - 1, across + width - 1), fill=shade)

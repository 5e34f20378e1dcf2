"""Drawn Raven's matrices: eight cells, and which of eight pictures is the ninth?

Folders: `raven_development` and `raven_support` out of the lines that are for use, `raven_test` out
of the project's test split (see raven_puzzles.py).

A document: 8 pictures of the context, row by row, then 8 candidate pictures. 112 x 112, white.
Its meta:

    source          "raven"
    configuration   "center_single", "distribute_four", ...
    num_context     8: how many of the pictures are context
    answer          index of the right one among the candidates, from 0
    bisected        what the candidates differ in: ["figure 1: colour", ...]
    vote            int[8]: how much each candidate has in common with all; no context is read
"""

from functools import lru_cache

from PIL import Image, ImageDraw

from corpora.demo.chance import shuffled
from corpora.demo.evaluations.drawing import png
from corpora.demo.evaluations.material import Material, Sets
from corpora.demo.evaluations.raven_puzzles import (
    COLOURS,
    FOLDER,
    FOUR,
    NUM_CONTEXT,
    TYPES,
    Cell,
    Component,
    Figure,
    Puzzle,
    bisected,
    configurations,
    is_for_test,
    places,
    read_puzzle,
    vote,
)
from corpora.document import Document, ImageSegment

NUM_TEST, NUM_DEVELOPMENT, NUM_SUPPORT = 50, 20, 10  # of each configuration
PIXELS = 112
FINER = 2  # drawn larger, then made small: smooth edges

# As RAVEN draws them: what share of its place a figure takes, by size.
SIZE_SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "circle": 0}
RGB = {
    "red": (230, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 230, 30),
    "lime": (165, 245, 30),
    "green": (20, 130, 40),
    "cyan": (50, 215, 235),
    "blue": (35, 60, 210),
    "purple": (125, 35, 150),
    "pink": (250, 150, 200),
    "white": (255, 255, 255),
}

Place = tuple[float, float, float]  # centre x, centre y, half the side; the cell is 1 wide


def sets(material: Material) -> Sets:
    """The three sets, as many of each configuration as there are."""
    found: Sets = {"raven_test": [], "raven_development": [], "raven_support": []}
    names = configurations(material.wheels)
    for configuration in names:
        lines = material.wheels.read("evals", f"{FOLDER}{configuration}.jsonl").decode()
        wanted = {
            name: -(-material.count(number * len(names)) // len(names))
            for name, number in (
                ("raven_test", NUM_TEST),
                ("raven_development", NUM_DEVELOPMENT),
                ("raven_support", NUM_SUPPORT),
            )
        }
        numbered = list(enumerate(lines.splitlines()))
        for number, line in shuffled(numbered, "raven", configuration, key=lambda n: n[0]):
            is_test = is_for_test(configuration, number)
            group = ("raven_test",) if is_test else ("raven_development", "raven_support")
            name = next((name for name in group if wanted[name]), None)
            if name is None:
                continue
            document = query(read_puzzle(line, configuration, number))
            if document is not None:
                found[name].append(document)
                wanted[name] -= 1
    return found


def query(puzzle: Puzzle) -> Document | None:
    """None where fewer than three attributes follow a rule: no eight candidates to be had."""
    candidates = bisected(puzzle)
    if candidates is None:
        return None
    cells = (*puzzle.context, *candidates.cells)
    meta = {
        "source": "raven",
        "configuration": puzzle.configuration,
        "num_context": NUM_CONTEXT,
        "answer": candidates.answer,
        "bisected": [f"figure {a.component + 1}: {a.name}" for a in candidates.attributes],
        "vote": vote(candidates.cells),
    }
    pictures = tuple(ImageSegment(draw(puzzle.configuration, cell)) for cell in cells)
    return Document(puzzle.key, pictures, meta)


@lru_cache(maxsize=4096)
def draw(configuration: str, cell: Cell) -> bytes:
    side = PIXELS * FINER
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    if "left" in configuration:
        pen.line((side // 2, 0, side // 2, side), fill=(120, 120, 120), width=FINER)
    if configuration.startswith("up"):
        pen.line((0, side // 2, side, side // 2), fill=(120, 120, 120), width=FINER)
    for number, component in enumerate(cell):
        _draw_component(pen, configuration, number, component)
    return png(image.reduce(FINER))


def _draw_component(
    pen: ImageDraw.ImageDraw, configuration: str, number: int, component: Component
) -> None:
    grid = slots(configuration, number)
    for figure in component:
        _draw_figure(pen, figure, grid[figure.slot])


def slots(configuration: str, component: int) -> list[Place]:
    """Where the figures of a component stand."""
    names = places(configuration, component)
    if configuration.startswith(("left", "up")):
        x, y = (0.25, 0.5) if component == 0 else (0.75, 0.5)
        return [(x, y, 0.24) if configuration.startswith("left") else (y, x, 0.24)]
    if configuration.startswith("in_"):
        if component == 0:
            return [(0.5, 0.5, 0.5)]
        return _grid(0.5, 0.16, 2) if names else [(0.5, 0.5, 0.17)]
    if not names:
        return [(0.5, 0.5, 0.5)]
    return _grid(0.5, 0.5, 2 if names is FOUR else 3)


def _grid(centre: float, half: float, side: int) -> list[Place]:
    """side x side places in the square of that half side, row by row."""
    step = 2 * half / side
    middles = [centre - half + step * (i + 0.5) for i in range(side)]
    return [(x, y, step / 2) for y in middles for x in middles]


def _draw_figure(pen: ImageDraw.ImageDraw, figure: Figure, place: Place) -> None:
    side = PIXELS * FINER
    x, y, half = (side * part for part in place)
    radius = half * SIZE_SHARES[figure.size]
    fill = RGB[COLOURS[figure.colour]]
    corners = CORNERS[TYPES[figure.type]]
    if corners == 0:
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=fill, outline="black", width=FINER + 1)
        return
    pen.regular_polygon(
        (x, y, radius), corners, rotation=figure.angle, fill=fill, outline="black", width=FINER + 1
    )

"""Facts about things one sees: MemoryColor, ColorTerms and RelativeSize, as text alone.

memory_color_data.csv         Index,Descriptor,Item,Color     descriptors such as "the " or ""
color-concrete-objects.csv    object,color
sizePairsFull.txt             `bigger smaller` a line
"""

from dataclasses import dataclass
from pathlib import Path

from evals.layouts.files import Record, find_file, read_csv, read_text
from mllm.errors import UserError

COLOURS = (
    "black",
    "blue",
    "brown",
    "green",
    "grey",
    "orange",
    "pink",
    "purple",
    "red",
    "white",
    "yellow",
)
MEMORY_COLOR = ("memory_color_data.csv", "memory_colors.csv", "memory_color.csv")
COLOR_TERMS = ("color-concrete-objects.csv", "color_terms.csv")
RELATIVE_SIZE = ("sizePairsFull.txt", "relative_size.txt")


@dataclass(frozen=True, slots=True)
class Coloured:
    """`thing` with its descriptor, such as `the inside of a melon`."""

    id: str
    thing: str
    colour: str


@dataclass(frozen=True, slots=True)
class SizePair:
    id: str
    bigger: str
    smaller: str


def load_memory_color(folder: Path) -> tuple[list[Coloured], Path]:
    path = find_file(folder, MEMORY_COLOR, "MemoryColor")
    rows = read_csv(path, ("Index", "Descriptor", "Item", "Color"))
    found = {}
    for row in rows:
        name = row.text("Index").strip()
        if name in found:
            raise row.error(f'"Index" {name} was already there; remove one')
        thing = f"{row.text('Descriptor')} {row.text('Item')}"
        found[name] = _coloured(row, f"{name:0>3}", thing, "Item", "Color")
    return _some(list(found.values()), path)


def load_color_terms(folder: Path) -> tuple[list[Coloured], Path]:
    path = find_file(folder, COLOR_TERMS, "ColorTerms")
    found: dict[str, Coloured] = {}
    for row in read_csv(path, ("object", "color")):
        coloured = _coloured(row, row.text("object").strip(), row.text("object"), "object", "color")
        if coloured.id in found:
            raise row.error(f'"object" {coloured.id} was already there; remove one')
        found[coloured.id] = coloured
    return _some(list(found.values()), path)


def _coloured(row: Record, name: str, thing: str, thing_key: str, colour_key: str) -> Coloured:
    if not row.text(thing_key).strip():
        raise row.error(f'"{thing_key}" is blank')
    colour = row.text(colour_key).strip().lower().replace("gray", "grey")
    if colour not in COLOURS:
        raise row.error(f'"{colour_key}" is {colour!r}, must be one of {", ".join(COLOURS)}')
    return Coloured(name, " ".join(thing.split()), colour)


def _some(found: list[Coloured], path: Path) -> tuple[list[Coloured], Path]:
    if not found:
        raise UserError(f"{path}: holds no row; download it again")
    return found, path


def load_relative_size(folder: Path) -> tuple[list[SizePair], Path]:
    path = find_file(folder, RELATIVE_SIZE, "RelativeSize")
    pairs: dict[tuple[str, str], SizePair] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split("\t") if "\t" in line else line.split()
        if not words or not line.strip():
            continue
        if len(words) != 2 or words[0] == words[1]:
            raise UserError(
                f"{path}: line {number}: is {line.strip()!r}, must be two things, the bigger first"
            )
        bigger, smaller = words[0].strip(), words[1].strip()
        if (smaller, bigger) in pairs or (bigger, smaller) in pairs:
            raise UserError(f"{path}: line {number}: {line.strip()!r} was already there")
        pairs[bigger, smaller] = SizePair(f"{number:03}", bigger, smaller)
    if not pairs:
        raise UserError(f"{path}: holds no pair; download it again")
    return list(pairs.values()), path

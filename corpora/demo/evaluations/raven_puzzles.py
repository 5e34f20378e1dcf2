"""RAVEN problems out of their descriptions in words, with distractors rebuilt by bisection.

The package describes each cell in a sentence ("a large orange circle rotated at 90 degrees in the
top left"). Its own distractors give the answer away: each differs from the answer in one detail,
so the answer is what most candidates have in common. Here, as in I-RAVEN, three attributes of the
answer get one other value each, and the candidates are the eight combinations: of every attribute
both values are there four times, and a vote over the candidates alone is a tie.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from corpora.demo.chance import shuffled
from corpora.demo.packages import Wheels

FOLDER = "evals/registry/data/raven-matrices/text/"
RESERVED = "in_distribute_four_out_center_single"  # the project's test split, whole
NUM_FOR_USE = 1500  # of each other configuration; the rest is the project's test split
NUM_CONTEXT = 8
NUM_BISECTED = 3  # 2 ** 3 candidates

# In the order that the rules count in.
SIZES = ("tiny", "small", "medium", "large", "huge", "giant")
COLOURS = (
    "red", "orange", "yellow", "lime", "green", "cyan", "blue", "purple", "pink", "white",
)  # fmt: skip
TYPES = ("triangle", "square", "pentagon", "hexagon", "circle")
FOUR = ("top left", "top right", "bottom left", "bottom right")
NINE = (
    "top left", "top center", "top right", "center left", "center", "center right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip

FIGURE = re.compile(
    rf"(?:(Inside|On the right|Below): )?an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) "
    rf"({'|'.join(TYPES)}) rotated at (-?\d+) degrees(?: in the ((?:\w+ ?)+\b))?"
)


@dataclass(frozen=True)
class Figure:
    """One drawn shape; the values are places in the tables above."""

    size: int
    colour: int
    type: int
    angle: int  # degrees
    slot: int = 0  # of the component's four or nine places


Component = tuple[Figure, ...]
Cell = tuple[
    Component, ...
]  # one component, or outside and inside, left and right, above and below


@dataclass(frozen=True)
class Puzzle:
    """Eight cells of a matrix and the ninth."""

    configuration: str
    number: int  # its line in the package's file, from 0
    context: tuple[Cell, ...]
    ninth: Cell

    @property
    def key(self) -> str:
        return f"raven-{self.configuration.replace('_', '-')}-{self.number:04d}"


@dataclass(frozen=True)
class Attribute:
    """What one bisection changes: an attribute of all figures of one component."""

    component: int
    name: str  # "size", "colour", "type" or "slots"


@dataclass(frozen=True)
class Candidates:
    """Eight cells, which is right, and what they differ in."""

    cells: tuple[Cell, ...]
    answer: int
    attributes: tuple[Attribute, ...]


# ---- reading ------------------------------------------------------------------------------------


def places(configuration: str, component: int) -> tuple[str, ...]:
    """The names of the slots of a component; empty where it has only one place."""
    if configuration == "distribute_nine":
        return NINE
    if configuration == "distribute_four" or (configuration == RESERVED and component == 1):
        return FOUR
    return ()


def read_cell(sentence: str, configuration: str) -> Cell:
    components: list[list[Figure]] = [[]]
    for second, size, colour, kind, angle, place in FIGURE.findall(sentence):
        if second:
            components.append([])
        slots = places(configuration, len(components) - 1)
        components[-1].append(
            Figure(
                SIZES.index(size),
                COLOURS.index(colour),
                TYPES.index(kind),
                int(angle),
                slots.index(place) if place else 0,
            )
        )
    return tuple(tuple(sorted(c, key=lambda figure: figure.slot)) for c in components)


def configurations(wheels: Wheels) -> list[str]:
    files = wheels.files("evals", FOLDER, ".jsonl")
    return [path.removeprefix(FOLDER).removesuffix(".jsonl") for path in files]


def is_for_test(configuration: str, number: int) -> bool:
    """Whether a line of a file is in the project's test split."""
    return configuration == RESERVED or number >= NUM_FOR_USE


def read_puzzle(line: str, configuration: str, number: int) -> Puzzle:
    """A problem from its line: a system turn, 8 cells, 8 candidates, and an unfinished answer."""
    problem = json.loads(line)
    sentences = [turn["content"] for turn in problem["input"][1:-1]]
    answer = NUM_CONTEXT + "ABCDEFGH".index(problem["ideal"].removeprefix("ANSWER: "))
    cells = [read_cell(sentence, configuration) for sentence in sentences]
    return Puzzle(configuration, number, tuple(cells[:NUM_CONTEXT]), cells[answer])


# ---- rules --------------------------------------------------------------------------------------

Rows = tuple[tuple[Any, Any, Any], ...]


def _constant(rows: Rows) -> bool:
    return all(a == b == c for a, b, c in rows)


def _distribute_three(rows: Rows) -> bool:
    return len(set(rows[0])) == 3 and all(set(row) == set(rows[0]) for row in rows)


def _progression(rows: Rows) -> bool:
    steps = {second - first for row in rows for first, second in itertools.pairwise(row)}
    return len(steps) == 1 and steps != {0}


def _arithmetic(rows: Rows) -> bool:
    return all(a + b == c for a, b, c in rows) or all(a - b == c for a, b, c in rows)


def _arithmetic_from_one(rows: Rows) -> bool:
    return _arithmetic(tuple((a + 1, b + 1, c + 1) for a, b, c in rows))


def _union_or_difference(rows: Rows) -> bool:
    return all(a | b == c for a, b, c in rows) or all(a - b == c for a, b, c in rows)


Rule = Callable[[Rows], bool]
NUMBER_RULES: tuple[Rule, ...] = (_constant, _distribute_three, _progression, _arithmetic)
RULES: dict[str, tuple[Rule, ...]] = {
    "size": (_constant, _distribute_three, _progression, _arithmetic_from_one),
    "colour": NUMBER_RULES,
    "type": (_constant, _distribute_three, _progression),
}


def _rotated(rows: Rows, num_slots: int) -> bool:
    """The taken slots move on by the same number of places from cell to cell."""

    def moved(slots: frozenset[int], step: int) -> frozenset[int]:
        return frozenset((slot + step) % num_slots for slot in slots)

    return any(
        all(moved(a, step) == b and moved(b, step) == c for a, b, c in rows)
        for step in range(1, num_slots)
    )


def follows_a_rule(attribute: str, rows: Rows, num_slots: int = 0) -> bool:
    """True if some rule of the attribute holds in all three rows."""
    if attribute != "slots":
        return any(rule(rows) for rule in RULES[attribute])
    numbers = tuple((len(a), len(b), len(c)) for a, b, c in rows)
    by_place: tuple[Rule, ...] = (_constant, _distribute_three, _union_or_difference)
    return (
        any(rule(rows) for rule in by_place)
        or _rotated(rows, num_slots)
        or any(rule(numbers) for rule in NUMBER_RULES)
    )


# ---- bisection ----------------------------------------------------------------------------------


def value(cell: Cell, attribute: Attribute) -> Any:
    """The one value of all figures; None where they differ. Slots: which are taken."""
    figures = cell[attribute.component]
    if attribute.name == "slots":
        return frozenset(figure.slot for figure in figures)
    values = {getattr(figure, attribute.name) for figure in figures}
    return values.pop() if len(values) == 1 else None


def with_value(cell: Cell, attribute: Attribute, new: Any) -> Cell:
    """The cell with another value; a figure that keeps its slot keeps all else."""
    figures = cell[attribute.component]
    if attribute.name == "slots":
        by_slot = {figure.slot: figure for figure in figures}
        changed = tuple(
            by_slot.get(slot, replace(figures[slot % len(figures)], slot=slot))
            for slot in sorted(new)
        )
    else:
        changed = tuple(replace(figure, **{attribute.name: new}) for figure in figures)
    return (*cell[: attribute.component], changed, *cell[attribute.component + 1 :])


def wrong_value(puzzle: Puzzle, attribute: Attribute) -> Any:
    """A value that breaks every rule, by hash; None where the true value keeps none of them."""
    values = [value(cell, attribute) for cell in (*puzzle.context, puzzle.ninth)]
    if None in values:
        return None
    slots = places(puzzle.configuration, attribute.component)

    def follows(ninth: Any) -> bool:
        v = [*values[:NUM_CONTEXT], ninth]
        rows = ((v[0], v[1], v[2]), (v[3], v[4], v[5]), (v[6], v[7], v[8]))
        return follows_a_rule(attribute.name, rows, len(slots))

    if not follows(values[-1]):
        return None
    others = shuffled(
        _domain(attribute.name, len(slots)), "value", puzzle.key, repr(attribute), key=_named
    )
    return next((other for other in others if not follows(other)), None)


def _named(value: Any) -> str:
    """A value's name for the hash: the order of a set is not the same everywhere."""
    return str(sorted(value) if isinstance(value, frozenset) else value)


def _domain(attribute: str, num_slots: int) -> Sequence[Any]:
    if attribute == "slots":
        sizes = range(1, num_slots + 1)
        return [frozenset(s) for n in sizes for s in itertools.combinations(range(num_slots), n)]
    return range(len({"size": SIZES, "colour": COLOURS, "type": TYPES}[attribute]))


def bisected(puzzle: Puzzle) -> Candidates | None:
    """Eight candidates by bisection; None if fewer than three attributes follow a rule."""
    chosen: list[tuple[Attribute, Any]] = []
    for attribute in shuffled(_attributes(puzzle), "bisect", puzzle.key, key=repr):
        if len(chosen) < NUM_BISECTED:
            wrong = wrong_value(puzzle, attribute)
            chosen += [(attribute, wrong)] if wrong is not None else []
    if len(chosen) < NUM_BISECTED:
        return None
    cells = [puzzle.ninth]
    for attribute, new in chosen:
        cells += [with_value(cell, attribute, new) for cell in cells]
    order = shuffled(range(len(cells)), "candidates", puzzle.key)
    attributes = tuple(attribute for attribute, _ in chosen)
    return Candidates(tuple(cells[i] for i in order), order.index(0), attributes)


def _attributes(puzzle: Puzzle) -> Iterator[Attribute]:
    for component in range(len(puzzle.ninth)):
        for name in ("size", "colour", "type"):
            yield Attribute(component, name)
        if places(puzzle.configuration, component):
            yield Attribute(component, "slots")


# ---- the control --------------------------------------------------------------------------------


def vote(cells: Sequence[Cell]) -> list[int]:
    """How much each candidate has in common with the others: what the answer set gives away.

    Returns:
        int[8]: over all attributes of all components, how many candidates share its value.
    """
    names = ("size", "colour", "type", "angle", "slots")
    totals = [0] * len(cells)
    for component in range(len(cells[0])):
        for name in names:
            values = [_signature(cell, component, name) for cell in cells]
            for number, own in enumerate(values):
                totals[number] += values.count(own)
    return totals


def _signature(cell: Cell, component: int, name: str) -> tuple[int, ...]:
    field = "slot" if name == "slots" else name
    return tuple(sorted(getattr(figure, field) for figure in cell[component]))


def vote_accuracy(choices: Sequence[tuple[Sequence[Cell], int]]) -> float:
    """The share of puzzles that the vote gets right; ties count by their part.

    Args:
        choices: (candidates, index of the answer) of each puzzle.
    """
    won = 0.0
    for cells, answer in choices:
        totals = vote(cells)
        best = [number for number, total in enumerate(totals) if total == max(totals)]
        won += (answer in best) / len(best)
    return won / len(choices)

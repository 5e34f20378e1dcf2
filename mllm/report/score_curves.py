"""Scores over the number of shots, and over the steps of training, with what they are held against.

Bands: the lighter one is a standard error to each side, the darker one a standard deviation over
the seeds that drew the shots.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mllm.report.curves import INK, draw, framed, ink
from mllm.report.markup import Markup, h
from mllm.report.verdict import SPLITS, Cell, by_task, shots_label, title

PERMUTED, BLIND = "other answers in shots", "wrong picture"
SWATCHES = {"curve": "swatch", "blind": "swatch dashed", "permuted": "swatch dotted"}
GLYPHS = {"s": "■", "D": "◆", "o": "○"}
Style = Literal["curve", "blind", "permuted", "point", "hollow", "dots"]


@dataclass(frozen=True)
class Line:
    """Some scores in order.

    Args:
        points: (place, score), places ascending.
        errors: a standard error each.
        spreads: a standard deviation over seeds each.
        style: a joined `curve`; the dashed or dotted one of a control; a `point` with its error as
            a bar; a `hollow` point; unjoined `dots`.
        marker: matplotlib's, of points.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    color: int
    style: Style = "curve"
    errors: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()
    marker: str = "o"


def k_curves(cells: list[Cell]) -> Markup | None:
    """A chart for every task that was asked with different numbers of shots."""
    groups = [by_shots(group) for group in by_task(cells).values()]
    charts = [chart for chart in map(_k_chart, groups) if chart is not None]
    if not charts:
        return None
    note = (
        "The darker band is a standard deviation over the seeds that drew the shots (small dots: "
        "each seed), the lighter one a standard error over the queries. 0* stands for two shots "
        "without their pictures. Where a score is no better than with other answers in the shots "
        "(the permuted control), the shots taught a form and not the task."
    )
    return h("div", h("p", note, class_="note"), h("div", charts, class_="charts"))


def by_shots(cells: Iterable[Cell]) -> list[Cell]:
    """Cells with a score, by number of shots; 0* after 0."""
    known = [cell for cell in cells if cell["score"] is not None]
    return sorted(known, key=lambda cell: (cell["num_shots"], shots_label(cell)))


def k_lines(cells: list[Cell]) -> list[Line]:
    """What is drawn for the cells of one task, in order of shots; places are those in `cells`."""
    placed = list(enumerate(cells))
    few = [(place, cell) for place, cell in placed if cell["num_shots"] > 0]
    seeds = [
        (place, seed["score"])
        for place, cell in few
        for seed in cell.get("per_seed", [])
        if len(cell["per_seed"]) > 1 and seed.get("score") is not None
    ]
    lines = [
        _scored("with shots", few, 0, "curve"),
        Line("each seed", tuple(seeds), 0, "dots"),
        _control(PERMUTED, few, "permuted", 1),
        _control(BLIND, placed, "blind", 2),
    ]
    for place, cell in placed:
        if cell["num_shots"] == 0:
            is_textual = shots_label(cell) != "0"
            label = "0*: shots without pictures" if is_textual else "no shots"
            marker = "D" if is_textual else "s"
            lines.append(_scored(label, [(place, cell)], 3 if is_textual else 0, "point", marker))
    same = [(cell.get("extra") or {}).get("zero_shot_same_queries") for _, cell in few]
    start = [place for place, cell in placed if shots_label(cell) == "0"]
    if start and any(value is not None for value in same):
        value = next(value for value in same if value is not None)
        lines.append(Line("no shots, on their queries", ((start[0], value),), 0, "hollow"))
    return [line for line in lines if line.points]


def _scored(
    label: str, placed: list[tuple[Any, Cell]], color: int, style: Style, marker: str = "o"
) -> Line:
    return Line(
        label,
        tuple((place, cell["score"]) for place, cell in placed),
        color,
        style,
        tuple(cell.get("se") or 0.0 for _, cell in placed),
        tuple(cell.get("seed_sd") or 0.0 for _, cell in placed),
        marker,
    )


def _control(
    label: str,
    placed: list[tuple[Any, Cell]],
    name: Literal["blind", "permuted"],
    color: int,
) -> Line:
    found = ((place, control_score(cell, name)) for place, cell in placed)
    return Line(label, tuple((p, s) for p, s in found if s is not None), color, name)


def control_score(cell: Cell, name: str) -> float | None:
    """Of the blind control or another one, where it ran."""
    controls = {"blind": cell.get("blind"), **cell.get("controls", {})}
    return (controls.get(name) or {}).get("score")


def _k_chart(cells: list[Cell]) -> Markup | None:
    if len(cells) < 2:
        return None
    ticks = [shots_label(cell) for cell in cells]
    return score_chart(_heading(cells[0]), _unit(cells[0]), k_lines(cells), cells, "shots", ticks)


def step_curves(steps: list[tuple[int, list[Cell]]]) -> Markup | None:
    """A chart a task of its scores over training steps, a colour for each number of shots.

    Args:
        steps: of training, with the cells of that checkpoint.
    """
    every = [cell for _, cells in steps for cell in cells]
    charts = []
    for task, group in by_task(every).items():
        labels = list(dict.fromkeys(map(shots_label, by_shots(group))))
        lines = []
        for color, label in enumerate(labels):
            placed = [
                (step, cell)
                for step, cells in steps
                for cell in by_shots(cells)
                if (cell["suite"], cell.get("split")) == task and shots_label(cell) == label
            ]
            lines.append(_scored(f"k = {label}", placed, color, "curve"))
            if label in (labels[0], labels[-1]):  # more would hide the scores
                lines.append(_control(f"{BLIND}, k = {label}", placed, "blind", color))
                lines.append(_control(f"{PERMUTED}, k = {label}", placed, "permuted", color))
        drawn = [line for line in lines if line.points]
        if drawn:
            heading = f"{_heading(group[0])}: over training"
            charts.append(score_chart(heading, _unit(group[0]), drawn, group, "training step"))
    return h("div", charts, class_="charts") if charts else None


def _heading(cell: Cell) -> str:
    split = str(cell.get("split") or "")
    return f"{title(cell)}, {SPLITS.get(split, split).split(':')[0]}" if split else title(cell)


def _unit(cell: Cell) -> str:
    names = (str(cell.get("metric", "")).replace("_", " "), str(cell.get("unit") or ""))
    return " ".join(filter(None, names))


def score_chart(
    heading: str,
    unit: str,
    lines: Sequence[Line],
    cells: Sequence[Cell],
    along: str,
    ticks: Sequence[str] = (),
) -> Markup:
    """A figure of lines, with chance as the first of `cells` that has one gives it.

    Args:
        along: name of the horizontal axis.
        ticks: names of the places 0, 1, ... on it; none where places are numbers.
    """
    chances = [cell["chance"] for cell in cells if cell.get("chance") is not None]
    legend = [_key(line) for line in lines]
    if chances:
        legend.append(h("span", h("i", class_="swatch dashed"), "chance"))

    def paint(axes: Any) -> None:
        for line in lines:
            _PAINTERS[line.style](axes, line)
        if chances:
            axes.axhline(chances[0], color=INK, lw=1, ls=(0, (4, 3)))
        axes.margins(x=0.06)
        axes.set_xlabel(along, color=INK)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)

    return framed(heading, unit, legend, draw(heading, paint))


def _key(line: Line) -> Markup:
    color = f"var(--s{line.color % 8 + 1})"
    if line.style in SWATCHES:
        style = f"border-color:{color}" if line.style != "curve" else f"background:{color}"
        return h("span", h("i", class_=SWATCHES[line.style], style=style), line.label)
    glyph = "·" if line.style == "dots" else GLYPHS[line.marker]
    return h("span", h("b", glyph, style=f"color:{color}"), line.label)


def _paint_curve(axes: Any, line: Line) -> None:
    xs, ys = zip(*line.points, strict=True)
    for widths, alpha in ((line.errors, 0.14), (line.spreads, 0.22)):
        if any(widths):
            low = [y - width for y, width in zip(ys, widths, strict=True)]
            high = [y + width for y, width in zip(ys, widths, strict=True)]
            axes.fill_between(xs, low, high, color=ink(line.color), alpha=alpha, lw=0)
    axes.plot(xs, ys, "-o", ms=3.5, lw=1.6, color=ink(line.color))


def _paint_control(axes: Any, line: Line) -> None:
    xs, ys = zip(*line.points, strict=True)
    dash = "--" if line.style == "blind" else ":"
    axes.plot(xs, ys, "x", ls=dash, ms=4, lw=1.2, color=ink(line.color))


def _paint_point(axes: Any, line: Line) -> None:
    xs, ys = zip(*line.points, strict=True)
    axes.errorbar(
        xs, ys, yerr=line.errors, fmt=line.marker, ms=5, elinewidth=1.2, color=ink(line.color)
    )


def _paint_hollow(axes: Any, line: Line) -> None:
    xs, ys = zip(*line.points, strict=True)
    axes.plot(xs, ys, line.marker, ms=6, mfc="none", color=ink(line.color))


def _paint_dots(axes: Any, line: Line) -> None:
    xs, ys = zip(*line.points, strict=True)
    axes.plot(xs, ys, ".", ms=4, alpha=0.6, color=ink(line.color))


_PAINTERS: dict[Style, Callable[[Any, Line], None]] = {
    "curve": _paint_curve,
    "blind": _paint_control,
    "permuted": _paint_control,
    "point": _paint_point,
    "hollow": _paint_hollow,
    "dots": _paint_dots,
}

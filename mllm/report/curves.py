"""Curves as inline SVG from matplotlib, in colours that follow the page (light and dark).

Titles, units and legends are HTML beside the drawing: they wrap on a narrow screen, and no text
from data enters the drawing.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm.report.markup import Markup, h

MAX_POINTS = 240  # of a drawn curve; longer ones are averaged in bins
NUM_COLORS = 8
WIDTH, HEIGHT = 4.6, 2.5  # inches; the text keeps a readable size from 320 to 560 pixels
# Stand-ins that `_themed` replaces by the page's variables.
INK, GRID = "#fe0101", "#fe0102"
STAND_INS = {INK: "var(--muted)", GRID: "var(--line)"} | {
    f"#fd01{i:02x}": f"var(--s{i + 1})" for i in range(NUM_COLORS)
}


@dataclass(frozen=True)
class Series:
    """One curve: its name and finite points by step."""

    label: str
    steps: np.ndarray  # float64 (N,)
    values: np.ndarray  # float64 (N,)
    color: int = 0
    is_sparse: bool = False  # few points, marked each (validation)


def series(
    label: str,
    points: Iterable[tuple[int, Any]],
    color: int = 0,
    is_sparse: bool = False,
) -> Series:
    """Keeps the points whose value is a finite number."""
    kept = [
        (step, float(value))
        for step, value in points
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    array = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return Series(label, array[:, 0], array[:, 1], color, is_sparse)


def binned(curve: Series) -> Series:
    """At most MAX_POINTS points: means over equal runs of neighbours."""
    if len(curve.steps) <= MAX_POINTS:
        return curve
    steps, values = (
        np.array([part.mean() for part in np.array_split(array, MAX_POINTS)])
        for array in (curve.steps, curve.values)
    )
    return Series(curve.label, steps, values, curve.color, curve.is_sparse)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the curve, shorter at both ends."""
    half = max(len(values) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    starts = np.maximum(np.arange(len(values)) - half, 0)
    stops = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[stops] - sums[starts]) / (stops - starts)


def chart(
    title: str,
    unit: str,
    curves: Sequence[Series],
    *,
    reference: tuple[str, float] | None = None,
    marks: tuple[str, Sequence[Series]] | None = None,
    from_zero: bool = False,
) -> Markup | None:
    """A figure of curves over steps, or None where there is no point to draw.

    Args:
        reference: name and height of a dashed line (chance).
        marks: name and steps of crosses on the horizontal axis (skipped steps), by run.
        from_zero: the vertical axis begins at zero.
    """
    drawn = [binned(curve) for curve in curves if len(curve.steps)]
    if not drawn:
        return None
    # Curves of one name (training and validation of a run) share a colour and one legend entry.
    entries = dict.fromkeys((curve.label, curve.color) for curve in drawn)
    legend = [
        h(
            "span",
            h("i", class_="swatch", style=f"background:var(--s{color % NUM_COLORS + 1})"),
            text,
        )
        for text, color in entries
    ]
    if reference:
        legend.append(h("span", h("i", class_="swatch dashed"), reference[0]))
    crosses = [curve for curve in marks[1] if len(curve.steps)] if marks else []
    if marks and crosses:
        legend.append(h("span", "× ", marks[0]))
    drawing = draw(title, lambda axes: _paint(axes, drawn, reference, crosses, from_zero))
    return framed(title, unit, legend, drawing)


def framed(title: str, unit: str, legend: Sequence[Markup], drawing: Markup) -> Markup:
    """A drawing below its title, unit and legend."""
    return h(
        "figure",
        h("figcaption", h("strong", title), h("span", unit, class_="unit")),
        h("div", legend, class_="legend"),
        h("div", drawing, role="img", aria_label=title),
    )


def ink(color: int) -> str:
    """What matplotlib draws in for one of the page's colours."""
    return f"#fd01{color % NUM_COLORS:02x}"


def _paint(
    axes: Any,
    curves: Sequence[Series],
    reference: tuple[str, float] | None,
    crosses: Sequence[Series],
    from_zero: bool,
) -> None:
    from matplotlib.ticker import MaxNLocator

    for curve in curves:
        color = ink(curve.color)
        dash = "-" if curve.color < NUM_COLORS else "--"
        if curve.is_sparse or len(curve.steps) < 8:
            axes.plot(curve.steps, curve.values, "o", ls=dash, ms=3.5, lw=1.2, color=color)
            continue
        axes.plot(curve.steps, curve.values, dash, lw=0.8, color=color, alpha=0.3)
        axes.plot(curve.steps, smoothed(curve.values), dash, lw=1.6, color=color)
    for curve in crosses:
        height = np.full(len(curve.steps), 0.02)  # of the axes
        on_axis = axes.get_xaxis_transform()
        axes.plot(
            curve.steps, height, "x", color=ink(curve.color), transform=on_axis, clip_on=False
        )
    if reference:
        axes.axhline(reference[1], color=INK, lw=1, ls=(0, (4, 3)))
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def draw(title: str, paint: Callable[[Any], None]) -> Markup:
    """What `paint` puts on matplotlib axes, in the page's look.

    Args:
        title: of the figure, different from every other on the page: ids follow from it.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # `none` keeps text as text, so it takes the page's font; the salt makes ids repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0, labelsize=9)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), title)


def _themed(svg: str, title: str) -> Markup:
    """The bare <svg> element in the page's colours, its ids private to the figure."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    prefix = re.sub(r"\W", "", title)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for stand_in, variable in STAND_INS.items():
        svg = svg.replace(stand_in, variable)
    return Markup(svg)

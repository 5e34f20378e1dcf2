"""A corpus on one page: lengths, resolutions, pictures a document."""

from pathlib import Path
from typing import Any

import numpy as np

from corpora.stats import CorpusStats
from mllm.files import write_aside

COLOUR = "#33658a"


def plot(stats: CorpusStats, out_dir: str | Path) -> Path:
    """Draws `OUT_DIR/stats.png` and gives back its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures, values = stats.figures, stats.values
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    megabytes = figures["text_bytes"]["sum"] / 1e6
    figure.suptitle(
        f"{figures['corpus']}: {figures['samples']:,} samples, "
        f"{figures['images']['sum']:,} pictures, {megabytes:,.1f} MB of text"
    )
    panels = figure.subplots(2, 3).flat
    kinds = {name: count for name, count in figures["kinds"].items() if count}
    _bars(next(panels), "samples by kind", list(kinds), list(kinds.values()))
    _lengths(next(panels), "text of a sample, bytes", values["text_bytes"])
    if len(values["tokens"]):
        title = f"tokens of a sample ({len(values['tokens']):,} measured)"
        _lengths(next(panels), title, values["tokens"])
    else:
        title = f"words of a sample ({len(values['words']):,} measured)"
        _lengths(next(panels), title, values["words"])
    per_sample = figures["images"]["per_sample"]
    _bars(next(panels), "pictures of a sample", *_first_of(per_sample))
    _sizes(next(panels), values["width"], values["height"])
    _lengths(next(panels), "width / height", values["aspect"])
    path = Path(out_dir) / "stats.png"
    with write_aside(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return path


def _bars(axes: Any, title: str, names: list[str], counts: list[int]) -> None:
    axes.barh(names[::-1], counts[::-1], color=COLOUR)
    for place, count in enumerate(counts[::-1]):
        axes.text(count, place, f" {count:,}", va="center", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8)


def _first_of(per_sample: dict[str, int], shown: int = 8) -> tuple[list[str], list[int]]:
    """The smallest numbers of pictures one by one, the others as one bar."""
    items = list(per_sample.items())
    names = [name for name, _ in items[:shown]]
    counts = [count for _, count in items[:shown]]
    if len(items) > shown:
        names.append(f"{items[shown][0]} or more")
        counts.append(sum(count for _, count in items[shown:]))
    return names, counts


def _lengths(axes: Any, title: str, values: np.ndarray) -> None:
    """A histogram over a logarithmic axis; zeros are named in the title."""
    positive = values[values > 0]
    zeros = len(values) - len(positive)
    axes.set_title(title + (f"; {zeros:,} of {len(values):,} are 0" if zeros else ""), fontsize=10)
    axes.tick_params(labelsize=8)
    if len(positive) == 0:
        return _nothing(axes)
    median = float(np.median(positive))
    # At least from half to twice the median, so that equal values are one bar, not the whole axis.
    low, high = min(float(positive.min()), median / 2), max(float(positive.max()), median * 2)
    axes.hist(positive, np.geomspace(low * 0.95, high * 1.05, 41), color=COLOUR)
    _logarithmic(axes, "x")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.axvline(median, color="black", linewidth=1)
    top = axes.get_ylim()[1] * 0.97
    axes.text(median, top, f" median {median:,.4g}", fontsize=8, va="top")


def _sizes(axes: Any, width: np.ndarray, height: np.ndarray) -> None:
    axes.set_title("size of a picture, pixels", fontsize=10)
    axes.tick_params(labelsize=8)
    if len(width) == 0:
        return _nothing(axes)
    step = max(1, len(width) // 20_000)
    axes.plot(width[::step], height[::step], ".", markersize=3, alpha=0.3, color=COLOUR)
    largest = max(int(width.max()), int(height.max()))
    axes.set_xlim(1, largest * 2)
    axes.set_ylim(1, largest * 2)
    _logarithmic(axes, "x")
    _logarithmic(axes, "y")
    axes.set_xlabel("width", fontsize=8)
    axes.set_ylabel("height", fontsize=8)


def _logarithmic(axes: Any, which: str) -> None:
    """A logarithmic axis whose ticks are plain numbers at powers of ten."""
    from matplotlib.ticker import NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def _nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
    axes.set_xticks([])
    axes.set_yticks([])

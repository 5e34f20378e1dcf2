"""The page as a whole: which sections, in which order, and what is missing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.report.charts import curve_section
from mllm.report.closing import limits_section, settings_section, times_section
from mllm.report.completions import completion_section
from mllm.report.corpus import corpus_section
from mllm.report.inputs import Export, Run, Times
from mllm.report.ledger import ledger_section
from mllm.report.markup import Markup, h, render
from mllm.report.samples import picture_section
from mllm.report.scores import headline, score_section
from mllm.report.style import CSS
from mllm.report.training import training_section
from mllm.report.verdict import Cell

# Nothing may be loaded or run: a second wall behind the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Inputs:
    """Everything the page is made of; None or empty where it was not there."""

    runs: list[Run]
    results: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # (eval dir, results)
    corpora_dir: Path | None = None
    corpus_report: dict[str, Any] | None = None
    export: Export | None = None
    times: Times | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def cells(self) -> list[Cell]:
        return [cell for _, results in self.results for cell in results["cells"]]


def build(inputs: Inputs, title: str, seed: int, num_pictures: int) -> str:
    """The HTML document."""
    sections = [
        (anchor, name, body)
        for anchor, name, body in _sections(inputs, seed, num_pictures)
        if body is not None
    ]
    main = h(
        "main",
        h("h1", title),
        h(
            "p",
            "A multimodal language model of text and pictures: how it was trained, what it scores "
            "and what the scores are worth.",
            class_="subtitle",
        ),
        headline(inputs.cells),
        h("nav", [h("a", name, href=f"#{anchor}") for anchor, name, _ in sections]),
        _missing(inputs.missing),
        [h("section", h("h2", name), body, id=anchor) for anchor, name, body in sections],
        h("footer", "Written by ", h("code", "mllm report"), ". This file needs no network."),
    )
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("title", title),
        h("style", Markup(CSS)),
    )
    return "<!doctype html>\n" + render(h("html", head, h("body", main), lang="en")) + "\n"


def _sections(
    inputs: Inputs, seed: int, num_pictures: int
) -> list[tuple[str, str, Markup | list[Markup] | None]]:
    cells = inputs.cells
    pictures = [
        picture_section(eval_dir, results["cells"], inputs.corpora_dir, seed, num_pictures)
        for eval_dir, results in inputs.results
    ]
    named = [(str(eval_dir), results) for eval_dir, results in inputs.results]
    report = inputs.corpus_report
    return [
        ("how", "How it was trained", training_section(inputs.runs, inputs.export)),
        ("scores", "Scores", score_section(cells) if cells else None),
        ("pictures", "What it says about pictures", pictures or None),
        ("curves", "Learning curves", curve_section(inputs.runs) if inputs.runs else None),
        ("said", "What it said while it trained", completion_section(inputs.runs, num_pictures)),
        ("ledger", "What was set aside", ledger_section(inputs.runs)),
        ("corpus", "What it was trained on", corpus_section(report) if report else None),
        ("times", "How long it took", times_section(inputs.times) if inputs.times else None),
        ("limits", "What it is not", limits_section(cells, inputs.runs, report)),
        ("settings", "Settings and fingerprints", settings_section(inputs.runs, named, report)),
    ]


def _missing(missing: list[str]) -> Markup | None:
    if not missing:
        return None
    return h(
        "div",
        "Not on this page, because it was not there when the page was written:",
        h("ul", [h("li", line) for line in missing]),
        class_="missing",
    )

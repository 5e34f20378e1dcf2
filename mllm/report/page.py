"""The page as a whole: which sections, in which order, and what is missing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.report.charts import curve_section
from mllm.report.closing import limits_section, settings_section, times_section
from mllm.report.completions import completion_section
from mllm.report.corpus import corpus_section
from mllm.report.document import document
from mllm.report.inputs import Export, Run, Times
from mllm.report.ledger import ledger_section
from mllm.report.markup import Markup
from mllm.report.samples import picture_section
from mllm.report.score_curves import k_curves
from mllm.report.scores import headline, score_section
from mllm.report.training import training_section
from mllm.report.verdict import Cell


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
    return document(
        title,
        "A multimodal language model of text and pictures: how it was trained, what it scores "
        "and what the scores are worth.",
        [
            (anchor, name, body)
            for anchor, name, body in _sections(inputs, seed, num_pictures)
            if body is not None
        ],
        lead=headline(inputs.cells),
        missing=inputs.missing,
        written_by="mllm report",
    )


def _sections(
    inputs: Inputs, seed: int, num_pictures: int
) -> list[tuple[str, str, Markup | list[Markup] | None]]:
    cells = inputs.cells
    pictures = [
        picture_section(eval_dir, results["cells"], inputs.corpora_dir, seed, num_pictures)
        for eval_dir, results in inputs.results
    ]
    curves = k_curves(cells)
    named = [(str(eval_dir), results) for eval_dir, results in inputs.results]
    report = inputs.corpus_report
    return [
        ("how", "How it was trained", training_section(inputs.runs, inputs.export)),
        ("scores", "Scores", score_section(cells) if cells else None),
        ("shots", "Scores over shots", curves or None),
        ("pictures", "What it says about pictures", pictures or None),
        ("curves", "Learning curves", curve_section(inputs.runs) if inputs.runs else None),
        ("said", "What it said while it trained", completion_section(inputs.runs, num_pictures)),
        ("ledger", "What was set aside", ledger_section(inputs.runs)),
        ("corpus", "What it was trained on", corpus_section(report) if report else None),
        ("times", "How long it took", times_section(inputs.times) if inputs.times else None),
        ("limits", "What it is not", limits_section(cells, inputs.runs, report)),
        ("settings", "Settings and fingerprints", settings_section(inputs.runs, named, report)),
    ]

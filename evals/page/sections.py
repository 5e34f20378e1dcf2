"""The page and its parts: scores, curves, examples of every task, counts, settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.api import Task
from evals.page.examples import Prompter, drawn, worst
from evals.page.prompts import Album, example
from evals.rows import Row, whole_rows
from evals.table import left_out_lines
from mllm.files import write_aside
from mllm.report.closing import settings_details, settings_section
from mllm.report.document import document
from mllm.report.markup import Child, Markup, h, join, number, table
from mllm.report.score_curves import k_curves, step_curves
from mllm.report.scores import headline, score_section
from mllm.report.verdict import (
    SPLITS,
    SUITES,
    Cell,
    by_task,
    in_reading_order,
    is_lower_better,
    shots_label,
    title,
    verdict,
)

MAX_PICTURE_BYTES = 6_000_000  # of the whole page, in equal shares for the cells
DRAW_SEED = 0
COUNTS = ("capped", "empty", "truncated", "missing", "distinct")  # of `num_...` in results.json

TaskKey = tuple[str, str]  # suite and split


def write_page(
    path: Path,
    rows_dir: Path,
    results: dict[str, Any],
    tasks: Mapping[TaskKey, Task],
    steps: list[tuple[int, list[Cell]]] = (),  # type: ignore[assignment]
) -> int:
    """Writes the page and gives back its length.

    Args:
        rows_dir: where the `samples` of `results` begin.
        tasks: those whose data is there; others are shown without prompts and pictures.
        steps: of training, with the cells of each checkpoint.
    """
    cells = in_reading_order(results["cells"])
    curves = [
        [h("h3", heading), drawing]
        for heading, drawing in (
            ("Over training", step_curves(steps)),
            ("Over the number of shots", k_curves(cells)),
        )
        if drawing is not None
    ]
    sections: list[tuple[str, str, Child]] = [
        ("scores", "Scores", score_section(cells)),
        ("curves", "Curves", curves or None),
        ("examples", "Examples and worst errors", _examples(cells, rows_dir, tasks)),
        ("counts", "Counts", counts_table(cells)),
        ("settings", "Settings and fingerprints", _settings(results, cells)),
    ]
    text = document(
        "mllm evaluation",
        _subtitle(results, cells),
        [section for section in sections if section[2] is not None],
        lead=headline(cells),
        missing=left_out_lines(results["left_out"]),
        written_by="mllm eval",
    )
    with write_aside(path) as file:
        file.write(text)
    return len(text.encode())


def _subtitle(results: dict[str, Any], cells: list[Cell]) -> Child:
    queries = sum(cell["n"] for cell in cells)
    return [
        "Scores of ",
        h("code", str(results["model"])),
        f" on held-out data: {len(by_task(cells))} tasks, {len(cells)} cells, {queries:,} queries, "
        "each score beside what can be had without the model or without seeing.",
    ]


# ----------------------------------------------------------------------------------------------
# Examples


def _examples(cells: list[Cell], rows_dir: Path, tasks: Mapping[TaskKey, Task]) -> Markup:
    note = (
        "Of every cell (first seed): a few queries in an order that the hash of (seed, id) "
        "decides, whatever the scores, and below them the worst errors, which are chosen. Bars are "
        "the share each candidate gets (softmax of the score that ranks it); ✓ is the right one. "
        "Shots stand in the order in which the model saw them."
    )
    share = MAX_PICTURE_BYTES // max(len(cells), 1)
    parts: list[Markup] = [h("p", note, class_="note")]
    for (suite, split), group in by_task(cells).items():
        heading = f"{title(group[0])}: {SPLITS.get(split, split)}"
        parts.append(h("h3", heading))
        parts.append(h("p", SUITES[suite][1]) if suite in SUITES else h("p", _about(suite)))
        for place, cell in enumerate(group):
            body = _cell_examples(cell, rows_dir, tasks.get((suite, split)), Album(share))
            summary = h("summary", f"k = {shots_label(cell)}: ", verdict(cell).text)
            parts.append(h("details", summary, body, open=place == 0))
    return join(parts)


def _about(suite: str) -> str:
    from evals.tasks import TASKS

    return TASKS[suite].about if suite in TASKS else ""


def _cell_examples(cell: Cell, rows_dir: Path, task: Task | None, album: Album) -> Markup:
    path = rows_dir / cell["per_seed"][0]["samples"]
    if not path.is_file():
        return h("p", f"Missing: {path}", class_="note")
    rows: list[Row] = sorted(whole_rows(path), key=lambda row: row["id"])
    prompter = Prompter(task, cell["settings"])

    def shown(row: Row, worst_by: str = "") -> Markup:
        return example(cell, row, prompter.prompt(row), task, album, worst_by)

    is_ranked = bool(rows and rows[0].get("candidates"))
    word = "above the right one by" if is_ranked else "score"
    errors = [
        shown(row, "" if value is None else f"{word} {number(value, 2)}")
        for row, value in worst(cell, rows, task)
    ]
    return join(
        [
            h("h4", f"Drawn with seed {DRAW_SEED}"),
            h("div", [shown(row) for row in drawn(rows, DRAW_SEED)], class_="examples"),
            h("h4", _worst_heading(cell, is_ranked))
            if errors
            else h("p", "No errors.", class_="note"),
            h("div", errors, class_="examples") if errors else None,
        ]
    )


def _worst_heading(cell: Cell, is_ranked: bool) -> str:
    if is_ranked or cell["unit"] == "%":
        return "Worst errors"
    return "Highest losses" if is_lower_better(cell) else "Lowest scores"


# ----------------------------------------------------------------------------------------------
# Foot


def name_of(cell: Cell) -> str:
    return f"{cell['suite']} ({cell['split']}) k={shots_label(cell)}"


def counts_table(cells: list[Cell]) -> Markup:
    """What was counted of the answers of each cell, and what was left out of its data."""
    known = [kind for kind in COUNTS if any(f"num_{kind}" in cell["extra"] for cell in cells)]
    rows = []
    for cell in cells:
        found = [cell["extra"].get(f"num_{kind}") for kind in known]
        left_out = ", ".join(f"{count:,} {why}" for why, count in cell["left_out"].items())
        rows.append(
            [
                name_of(cell),
                h("strong", f"{cell['n']:,}"),
                *("–" if count is None else f"{count:,}" for count in found),
                left_out or "nothing",
                f"{cell['seconds']:,.1f} s",
            ]
        )
    columns = ["Cell", "n", *known, "Left out of its data", "Asking took"]
    return table(columns, rows, numeric=range(1, len(known) + 2))


def _settings(results: dict[str, Any], cells: list[Cell]) -> Markup:
    figures = {name_of(cell): cell["extra"] for cell in cells if cell["extra"]}
    notes = {name_of(cell): cell["baseline_notes"] for cell in cells if cell["baseline_notes"]}
    return join(
        [
            settings_section([], [(str(results["model"]), results)], None),
            settings_details("Further figures of every cell", figures) if figures else None,
            settings_details("What the baselines were made from", notes) if notes else None,
        ]
    )

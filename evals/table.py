"""The score table on the terminal, and the lines below it that say what the scores mean."""

from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.tasks import NOWHERE_NAMED

CONTROLS = ("blind", "no_picture", "permuted")  # columns; a task's own stand below the table
LANGUAGE_SETS = (
    "storycloze",
    "hellaswag",
    "winograd",
    "winogrande",
    "piqa",
    "boolq",
    "cb",
    "copa",
)
BLIND_TOLERANCE = 3  # standard errors between a blind control and chance


def number(value: float | None, se: float | None = None) -> str:
    """One decimal for figures of ten and more, three below; `± se` where there is one."""
    if value is None:
        return "-"
    digits = 1 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}" + (f" ± {se:.{digits}f}" if se is not None else "")


def score_table(cells: list[dict[str, Any]]) -> Table:
    """A line a cell: score with its standard error, n, and what it is held against."""
    table = Table(title="Scores on held-out data (± one standard error)")
    table.add_column("task")
    controls = [name for name in CONTROLS if any(control(cell, name) for cell in cells)]
    headings = ("shots", "metric", "score", "n", "chance", "majority", "baseline", *controls)
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading == "metric" else "right"
        table.add_column(heading.replace("_", " "), justify=justify)
    for cell in cells:
        others = (f"{name} {number(value)}" for name, value in cell["baselines"].items())
        found = (control(cell, name) or {"score": None, "se": None} for name in controls)
        table.add_row(
            f"{cell['suite']} ({cell['split']})",
            cell["shots"],
            " ".join(filter(None, (cell["metric"], cell["unit"]))),
            number(cell["score"], cell["se"]),
            str(cell["n"]),
            number(cell["chance"]),
            number(cell["majority"]),
            "\n".join(others) or "-",
            *(number(numbers["score"], numbers["se"]) for numbers in found),
        )
    return table


def control(cell: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The figures of a control of a cell, where it ran."""
    if name == "blind":
        return cell["blind"]
    return cell["controls"].get(name)


def verdict_lines(cells: list[dict[str, Any]]) -> list[str]:
    """For each cell: against each baseline, and whether the blind control is where it should be."""
    lines = []
    for cell in cells:
        name = f"{cell['suite']} ({cell['split']}) k={cell['shots']}"
        for verdict in cell["verdicts"]:
            baseline = verdict["baseline"]
            lines.append(
                f"{name}: {number(cell['score'])} {cell['unit']}, {verdict['relation']} the "
                f"{baseline} ({number(cell['baselines'][baseline])}); difference "
                f"{number(verdict['difference'], verdict['se'])}"
            )
        if "zero_shot_same_queries" in cell["extra"]:
            zero_shot = cell["extra"]["zero_shot_same_queries"]
            lines.append(f"{name}: k=0 on the same queries: {number(zero_shot)}")
        if cell["blind"] and None not in (cell["score"], cell["blind"]["score"]):
            lines.append(f"{name}: {_blind_line(cell)}")
        for kind, numbers in cell["controls"].items():
            lines.append(
                f"{name}: {kind.replace('_', ' ')} {number(numbers['score'], numbers['se'])}"
            )
        if interval := cell["extra"].get("interval_95"):
            low, high = map(number, interval)
            lines.append(f"{name}: 95 % interval {low} to {high}")
        for score, why in cell["extra"].get("absent", {}).items():
            lines.append(f"{name}: no {score}: {why}")
        if "undefined" in cell["extra"]:
            lines.append(f"{name}: no {cell['metric']}: {cell['extra']['undefined']}")
        if cell["left_out"]:
            counts = ", ".join(f"{count} {why}" for why, count in cell["left_out"].items())
            lines.append(f"{name}: left out: {counts}")
    return lines


def language_averages(cells: list[dict[str, Any]]) -> dict[str, float]:
    """KOSMOS-1's average by number of shots: the plain mean of the eight accuracies, where all
    eight were run."""
    averages = {}
    for shots in dict.fromkeys(cell["shots"] for cell in cells):
        found = {cell["suite"]: cell["score"] for cell in cells if cell["shots"] == shots}
        scores = [found.get(name) for name in LANGUAGE_SETS]
        known = [score for score in scores if score is not None]
        if len(known) == len(scores):
            averages[shots] = round(sum(known) / len(known), 4)
    return averages


def _blind_line(cell: dict[str, Any]) -> str:
    blind, errors = cell["blind"], (cell["se"] or 0.0, cell["blind"]["se"] or 0.0)
    drop, drop_se = cell["score"] - blind["score"], (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    line = (
        f"with another picture {number(blind['score'], blind['se'])}, a drop of "
        f"{number(drop, drop_se)}"
    )
    if drop <= 2 * drop_se:
        return line + ": NOT clearly above its blind control"
    if cell["metric"] == "accuracy" and cell["chance"] is not None:
        is_near = abs(blind["score"] - cell["chance"]) <= BLIND_TOLERANCE * errors[1]
        return line + f", {'at' if is_near else 'NOT at'} chance ({number(cell['chance'])})"
    return line


def print_scores(cells: list[dict[str, Any]]) -> None:
    """Table and verdicts on stdout, as wide as they need where stdout is a file."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(score_table(cells))
    for line in verdict_lines(cells):
        console.print(line, highlight=False, soft_wrap=True)
    for shots, average in language_averages(cells).items():
        print(f"language k={shots}: mean of the eight accuracies {number(average)} %")


def print_steps(steps: list[tuple[int, list[dict[str, Any]]]]) -> None:
    """A line a training step, a column a cell."""
    names = dict.fromkeys(_short(cell) for _, cells in steps for cell in cells)
    table = Table(title="Scores over training (± one standard error)")
    for heading in ("step", *names):
        table.add_column(heading, justify="right")
    for step, cells in steps:
        scores = {_short(cell): number(cell["score"], cell["se"]) for cell in cells}
        table.add_row(str(step), *(scores.get(name, "-") for name in names))
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)


def _short(cell: dict[str, Any]) -> str:
    return f"{cell['suite']} ({cell['split']}) k={cell['shots']}"


def print_tasks(suites: dict[str, str], tasks: list[dict[str, str]]) -> None:
    """Suites, then tasks with their data: what `mllm eval list` shows."""
    for name, about in suites.items():
        print(f"{name:12} {about}")
    table = Table(show_lines=False)
    for heading in ("task", "asks", "--data", "reads", "from", "state"):
        table.add_column(heading, overflow="fold")
    for task in tasks:
        columns = ("name", "about", "data", "files", "source", "state")
        table.add_row(*(escape(task[column]) for column in columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def left_out_lines(left_out: list[str]) -> list[str]:
    """What a suite went without: a line each, and one for all whose data nobody named."""
    unnamed = [line for line in left_out if NOWHERE_NAMED in line]
    lines = [line for line in left_out if line not in unnamed]
    if unnamed:
        lines.append(f"{len(unnamed)} tasks whose data {NOWHERE_NAMED}; see `mllm eval list`")
    return lines

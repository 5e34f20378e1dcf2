"""Which queries of a cell are shown, and their prompts as they were asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from evals.api import SEPARATORS, Exemplar, Prompt, Support, Task
from evals.rows import Row
from evals.scoring import NORMS
from evals.shots import limited, without_pictures
from evals.tasks.rows import candidate_scores
from mllm.report.samples import in_drawn_order, is_right
from mllm.report.verdict import Cell, is_lower_better

NUM_DRAWN = 4
NUM_WORST = 4


def drawn(rows: Sequence[Row], seed: int, count: int = NUM_DRAWN) -> list[Row]:
    """The first rows in an order that the seed and the ids decide, whatever the scores."""
    by_id = {row["id"]: row for row in rows}
    return [by_id[key] for key in in_drawn_order(by_id, seed)[:count]]


def worst(
    cell: Cell, rows: Sequence[Row], task: Task | None, count: int = NUM_WORST
) -> Sequence[tuple[Row, float | None]]:
    """The worst errors, worst first, ids in order where equal: rows with what they are worst by.

    Ranked candidates: wrong answers by how far they stand above the right one, under the cell's
    norm. Others: wrong answers by their score, without a score where the task gives none.
    """
    if rows and rows[0].get("candidates"):
        norm = str(cell["settings"].get("norm", "token"))
        margins = [
            (row, margin(row, norm)) for row in rows if is_right(cell["suite"], row) is False
        ]
        return sorted(margins, key=lambda pair: (-pair[1], pair[0]["id"]))[:count]
    scores = task.row_scores(list(rows)) if task is not None else None
    sign = -1 if is_lower_better(cell) else 1
    if scores is None:
        wrong = [row for row in rows if is_right(cell["suite"], row) is False]
        return [(row, None) for row in sorted(wrong, key=lambda row: row["id"])[:count]]
    pairs = [
        (row, score)
        for row, score in zip(rows, scores, strict=True)
        # A share of 1 is right; a score such as CIDEr or a loss has no such line.
        if cell["unit"] != "%" or score < 0.5
    ]
    return sorted(pairs, key=lambda pair: (sign * pair[1], pair[0]["id"]))[:count]


def margin(row: Row, norm: str) -> float:
    """How far the best candidate stands above the right one, in nats under `norm`."""
    scores = [NORMS[norm](candidate) for candidate in candidate_scores(row)]
    return max(scores) - scores[_gold_index(row)]


def _gold_index(row: Row) -> int:
    if "gold_index" in row:
        return row["gold_index"]
    return [candidate["text"].strip() for candidate in row["candidates"]].index(row["gold"])


UNBOUNDED: Any = SimpleNamespace(max_positions=None)  # a model to which every prompt fits


@dataclass(frozen=True)
class Prompter:
    """Makes the prompts of a cell's rows again, from the data that the task reads now.

    Args:
        task: None where its data is not there.
    """

    task: Task | None
    settings: dict[str, Any]

    def prompt(self, row: Row) -> Prompt | None:
        """What was asked; None where the data gives another prompt by now, or none."""
        if self.task is None or self.settings.get("data") != self.task.data_fingerprint:
            return None
        support = self._support(self.task) if row["shots"] else None
        if row["shots"] and support is None:
            return None
        query = self.task.query(row["id"])
        if support is not None and support.own is not None:  # each query's exemplars are its own
            support = support.own(query)
        shots = tuple(self._shot(support.read(shot_id)) for shot_id in row["shots"] if support)
        # Without shots no separator stands in the settings, though the digest has one.
        separators = [self.settings["separator"]] if row["shots"] else SEPARATORS
        # What a task adds to every prompt, such as a style's instruction. What it cut for a model
        # is not made again.
        prompts = (
            self.task.fitted(Prompt(shots, query, separator), UNBOUNDED) for separator in separators
        )
        return next((p for p in prompts if p.sha() == row["prompt_sha"]), None)

    def _support(self, task: Task) -> Support | None:
        """The support set that the shots were drawn from, if it still is that one."""
        support = task.support()
        known = limited(support, self.settings.get("support_size")).fingerprint
        return support if known == self.settings["support"] else None

    def _shot(self, shot: Exemplar) -> Exemplar:
        if self.settings["is_textual"]:
            return replace(shot, question=without_pictures(shot.question))
        return shot

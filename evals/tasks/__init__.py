"""The tasks by name, and the suites that group them into cells."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evals.api import Task
from evals.tasks.caption import Caption
from evals.tasks.easy_vqa import EasyVqa
from evals.tasks.naming import SPLITS, Naming
from evals.tasks.text_loss import TextLoss

# name: (make(data_dir, split), one line of help). Tasks with one split ignore `--split`.
TASKS: dict[str, tuple[Callable[[Path, str], Task], str]] = {
    "naming": (Naming, "5-way naming of artwork never trained on, by log-likelihood"),
    "caption": (Caption, "captions of the same pictures, beam 5, CIDEr"),
    "easy_vqa": (lambda data, split: EasyVqa(data), "easy-vqa test questions, greedy"),
    "text_loss": (lambda data, split: TextLoss(data), "validation loss of text"),
}
SPLIT_NAMES = SPLITS


@dataclass(frozen=True)
class CellSpec:
    """One line of the score table.

    Args:
        limit: At most this many queries, by id hash; `--limit` and `--full` override it.
    """

    task: str
    num_shots: int
    limit: int


# Sizes that keep `demo` near 100 s for a 10M-parameter model on two CPU cores.
LIMITS = {"naming": 500, "caption": 100, "easy_vqa": 500, "text_loss": 64}
FEWSHOT_LIMITS = {"naming": 120, "caption": 40, "easy_vqa": 120}
ZEROSHOT = tuple(CellSpec(task, 0, LIMITS[task]) for task in TASKS)
FEWSHOT_SHOTS = (0, 2, 4)


def cell_spec(task: str, num_shots: int) -> CellSpec:
    """A cell of one task at its default size."""
    limits = FEWSHOT_LIMITS if num_shots > 0 and task in FEWSHOT_LIMITS else LIMITS
    return CellSpec(task, num_shots, limits[task])


def suite_cells(name: str, shots: tuple[int, ...] | None) -> list[CellSpec]:
    """The cells of a suite or of a task by name; `shots` replaces the few-shot grid."""
    fewshot = [cell_spec("naming", k) for k in shots or FEWSHOT_SHOTS]
    match name:
        case "zeroshot":
            return list(ZEROSHOT)
        case "fewshot":
            return fewshot
        case "demo":
            return list(dict.fromkeys([*ZEROSHOT, *fewshot]))
    return [cell_spec(name, k) for k in shots or (0,)]


SUITES = {
    "zeroshot": "naming, caption, easy_vqa and text_loss at k = 0",
    "fewshot": "naming at k = 0, 2, 4 with three seeds",
    "demo": "both, each cell once",
}

"""The tasks by name, and the suites that group them into cells.

A task is a class of a file here; `TASKS` says which data set it reads, where a user gets that, and
in which cells the suites ask it. Adding one is a class and a line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evals.api import Task
from evals.data import DEMO, DataPaths
from evals.options import TaskOptions
from evals.tasks.caption import Caption
from evals.tasks.easy_vqa import EasyVqa
from evals.tasks.incontext import InContext
from evals.tasks.naming import SPLITS, Naming
from evals.tasks.text_loss import TextLoss
from mllm.errors import UserError

SPLIT_NAMES = SPLITS


@dataclass(frozen=True)
class TaskInfo:
    """What `mllm eval list` prints of a task, and how it is made.

    Args:
        about: One line.
        make: Task from the folder of its data and the user's choices. Raises UserError, and says
            which path is missing, before any picture is opened.
        data: Name of its data set, which `--data NAME=DIR` gives a folder to.
        files: What it reads there.
        source: Where a user gets them.
        limit: Queries of a zero-shot cell by default; `--limit` and `--full` override it.
        shots: The few-shot cells of suite `fewshot`; empty where it has none.
        fewshot_limit: Queries of a few-shot cell by default.
        takes_shots: Whether the task has a support set at all.
    """

    about: str
    make: Callable[[Path, TaskOptions], Task]
    data: str
    files: str
    source: str
    limit: int = 500
    shots: tuple[int, ...] = ()
    fewshot_limit: int = 120
    takes_shots: bool = True


DEMO_SOURCE = "mllm corpora demo --out DIR"


def _demo(about: str, make: Callable[[Path, TaskOptions], Task], files: str, **more) -> TaskInfo:
    return TaskInfo(about, make, DEMO, files, DEMO_SOURCE, **more)


# Limits keep `zeroshot` under 3 minutes and `fewshot` under 10 for a 6M-parameter model on two CPU
# cores.
LOCAL_TASKS: dict[str, TaskInfo] = {
    "naming": _demo(
        "5-way naming of artwork never trained on, by log-likelihood",
        Naming,
        "eval/naming_{SPLIT}, eval/naming_support",
        shots=(0, 2, 4, 8),
    ),
    "caption": _demo(
        "captions of the same pictures, beam 5, CIDEr",
        Caption,
        "eval/naming_{SPLIT}, eval/naming_support",
        limit=100,
        fewshot_limit=40,
    ),
    "easy_vqa": _demo(
        "easy-vqa test questions, greedy",
        EasyVqa,
        "eval/easy_vqa_test, eval/easy_vqa_support, vqa/train",
    ),
    "text_loss": _demo(
        "validation loss of text",
        TextLoss,
        "text/validation, text/train",
        limit=64,
        takes_shots=False,
    ),
}

IN_CONTEXT = TaskInfo(
    "labels that nothing but the shots defines, for pictures of nameless classes",
    InContext,
    "incontext",
    "eval/incontext_test, eval/incontext_support",
    "mllm corpora incontext --out DIR",
    limit=400,
    shots=(0, 2, 4, 8),
    fewshot_limit=400,
)

TASKS: dict[str, TaskInfo] = {**LOCAL_TASKS, "incontext": IN_CONTEXT}

SUITES = {
    "zeroshot": "every task at k = 0 whose data is there",
    "fewshot": "few-shot cells of every task that has them and whose data is there",
    "demo": "both, on the demo corpus alone",
}


@dataclass(frozen=True)
class CellSpec:
    """One line of the score table.

    Args:
        limit: At most this many queries, by id hash; `--limit` and `--full` override it.
        is_textual: `0*`.
    """

    task: str
    num_shots: int
    limit: int
    is_textual: bool = False


def cell_spec(task: str, shots: str | int) -> CellSpec:
    """A cell of one task at its default size; `shots` is a number or `0*`."""
    info = TASKS[task]
    is_textual = shots == "0*"
    num_shots = 0 if is_textual else int(shots)
    has_shots = is_textual or num_shots > 0
    return CellSpec(task, num_shots, info.fewshot_limit if has_shots else info.limit, is_textual)


def suite_cells(name: str, shots: tuple[str, ...] | None) -> list[CellSpec]:
    """The cells of a suite or of a task by name; `shots` replaces a few-shot grid."""
    if name in TASKS:
        return [cell_spec(name, k) for k in shots or ("0",)]
    names = LOCAL_TASKS if name == "demo" else TASKS
    zeroshot = [cell_spec(task, 0) for task in names]
    fewshot = [
        cell_spec(task, k)
        for task in names
        if TASKS[task].shots
        for k in shots or TASKS[task].shots
    ]
    cells = {"zeroshot": zeroshot, "fewshot": fewshot, "demo": zeroshot + fewshot}[name]
    return list(dict.fromkeys(cells))


def make_task(name: str, paths: DataPaths, options: TaskOptions) -> Task:
    """A task on the data that the user named.

    Raises:
        UserError: No folder was named for its data, or something in it is missing.
    """
    info = TASKS[name]
    folder = paths.find(name, info.data)
    if folder is None:
        raise UserError(
            f"{name}: its data is nowhere named; pass --data {info.data}=DIR with {info.files} "
            f"({info.source})"
        )
    if not folder.is_dir():
        mend = f"; build it with `mllm corpora demo --out {folder}`" if info.data == DEMO else ""
        raise UserError(f"{folder}: no such folder for the data of {name}{mend}")
    return info.make(folder, options)

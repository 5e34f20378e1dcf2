"""The tasks by name, and the suites that group them into cells.

A task is a class of a file here; `TASKS` says which data set it reads, where a user gets that, and
in which cells the suites ask it. Adding one is a class and a line.
"""

from dataclasses import dataclass

from evals.api import Task
from evals.data import DEMO, DataPaths
from evals.options import TaskOptions
from evals.tasks.caption import Caption
from evals.tasks.easy_vqa import EasyVqa
from evals.tasks.incontext import InContext
from evals.tasks.info import TaskInfo, on_demo
from evals.tasks.local import LOCAL_SETS
from evals.tasks.local_set import SPLITS
from evals.tasks.naming import Naming
from evals.tasks.ranking_tasks import RANKING_TASKS
from evals.tasks.text_loss import TextLoss
from evals.tasks.vision_language import VISION_TASKS
from mllm.errors import UserError

SPLIT_NAMES = SPLITS
NOWHERE_NAMED = "is nowhere named"  # in what a suite says about a task that it leaves out


# Limits keep `zeroshot` under 3 minutes and `fewshot` under 10 for a 6M-parameter model on two CPU
# cores.
LOCAL_TASKS: dict[str, TaskInfo] = {
    "naming": on_demo(
        "5-way naming of artwork never trained on, by log-likelihood",
        Naming,
        "eval/naming_{SPLIT}, eval/naming_support",
        shots=(0, 2, 4, 8),
    ),
    "caption": on_demo(
        "captions of the same pictures, beam 5, CIDEr",
        Caption,
        "eval/naming_{SPLIT}, eval/naming_support",
        limit=100,
        fewshot_limit=40,
    ),
    "easy_vqa": on_demo(
        "easy-vqa test questions, greedy",
        EasyVqa,
        "eval/easy_vqa_test, eval/easy_vqa_support, vqa/train",
        shots=(2, 4),
    ),
    "text_loss": on_demo(
        "validation loss of text",
        TextLoss,
        "text/validation, text/train",
        limit=64,
        takes_shots=False,
    ),
    **LOCAL_SETS,
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

TASKS: dict[str, TaskInfo] = {
    **LOCAL_TASKS,
    "incontext": IN_CONTEXT,
    **VISION_TASKS,
    **RANKING_TASKS,
}

QUICK_TASKS = ("naming", "caption", "easy_vqa", "text_loss")

SUITES = {
    "zeroshot": "every task at k = 0 whose data is there",
    "fewshot": "few-shot cells of every task that has them and whose data is there",
    "demo": "both, on the demo corpus alone",
    "quick": "naming, caption, easy_vqa and text_loss at k = 0, naming at 2 and 4: a minute",
}


def data_names() -> set[str]:
    """What `--data NAME=DIR` may name: data sets, and tasks."""
    return {*TASKS, *(info.data for info in TASKS.values())}


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
    if name == "quick":
        few = [cell_spec("naming", k) for k in shots or ("2", "4")]
        return list(dict.fromkeys([cell_spec(task, 0) for task in QUICK_TASKS] + few))
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
            f"{name}: its data {NOWHERE_NAMED}; pass --data {info.data}=DIR with {info.files} "
            f"({info.source})"
        )
    if not folder.is_dir():
        mend = f"; build it with `mllm corpora demo --out {folder}`" if info.data == DEMO else ""
        raise UserError(f"{folder}: no such folder for the data of {name}{mend}")
    return info.make(folder, options)

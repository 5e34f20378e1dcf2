"""What is known of a task before it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.api import Task
from evals.data import DEMO
from evals.options import TaskOptions


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


def on_demo(
    about: str, make: Callable[[Path, TaskOptions], Task], files: str, **more: Any
) -> TaskInfo:
    """A task on the demo corpus."""
    return TaskInfo(about, make, DEMO, files, DEMO_SOURCE, **more)

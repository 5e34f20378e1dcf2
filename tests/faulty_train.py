"""mllm/train.py with a fault planted in one rank: RANK STEP FAULT CONFIG [overrides]."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mllm.errors import UserError
from mllm.stream.loader import Loader
from mllm.train import run_rank


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def fail() -> None:
    raise ValueError("planted")


def refuse() -> None:
    raise UserError("planted; mend it")


FAULTS = {
    "hang": sleep_for_ever,
    "raise": fail,
    "refuse": refuse,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def plant(rank: int, step: int, fault: str) -> None:
    """The loader of that rank meets the fault when it is asked for that step (from 0)."""
    original = Loader.__next__

    def __next__(self: Loader) -> tuple[int, list[Any]]:
        at, batches = original(self)
        if at == step and int(os.environ["RANK"]) == rank:
            FAULTS[fault]()
        return at, batches

    Loader.__next__ = __next__  # type: ignore[method-assign]


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    plant(int(arguments[0]), int(arguments[1]), arguments[2])
    sys.exit(run_rank(arguments[3:]))

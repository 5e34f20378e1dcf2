"""Where metrics are shown beside `metrics.jsonl`: TensorBoard, wandb, trackio.

Each has a thread of its own that starts it and feeds it, so that one that fails says so in a line
and is left, and one that hangs on a network holds up nothing.
"""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from mllm.files import fingerprint

SinkName = Literal["tensorboard", "wandb", "trackio"]
MAX_WAITING = 10_000  # lines; what comes on top is dropped and counted
CLOSE_SECONDS = 10.0  # at the end of a run, for what still waits


class Tracker(Protocol):
    """What is asked of one of these libraries."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Sink:
    """Hands metrics to one tracker in the background.

    Args:
        name: for messages.
        open_tracker: starts it; called in the sink's thread.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]):
        self._name, self._open = name, open_tracker
        self._waiting: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(MAX_WAITING)
        self._num_dropped = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def write(self, values: dict[str, Any]) -> None:
        """Takes one object of metrics.jsonl and returns at once."""
        try:
            self._waiting.put_nowait((flat(values), values["step"]))
        except queue.Full:
            self._num_dropped += 1

    def close(self) -> None:
        """Waits a little for what is still to be shown."""
        end = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < end:
            try:
                self._waiting.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            print(f"mllm: {self._name} did not end in {CLOSE_SECONDS:.0f} s; left", flush=True)
        elif self._num_dropped:
            print(f"mllm: {self._name} got {self._num_dropped} lines less, it was slow", flush=True)

    def _run(self) -> None:
        try:
            tracker = self._open()
            while (item := self._waiting.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except Exception as error:  # whatever a tracker does, training goes on
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"mllm: {self._name} stopped: {text}; metrics.jsonl goes on", flush=True)


def open_sinks(
    names: list[SinkName], run_dir: Path, project: str, config: dict[str, Any], step: int
) -> list[Sink]:
    """The sinks of a run that goes on after `step`. Their libraries are imported in threads."""
    run_id = _run_id(run_dir) if {"wandb", "trackio"} & set(names) else ""
    openers: dict[SinkName, Callable[[], Tracker]] = {
        "tensorboard": lambda: _TensorBoard(run_dir, step),
        "wandb": lambda: _Wandb(run_dir, project, config, run_id),
        "trackio": lambda: _Trackio(run_dir, project, config, run_id),
    }
    return [Sink(name, openers[name]) for name in names]


class _TensorBoard:
    def __init__(self, run_dir: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier process wrote of steps that are run again is hidden.
        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run_dir: Path, project: str, config: dict[str, Any], run_id: str):
        import wandb

        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            config=config,
        )
        # Steps of its own only rise; a resumed run repeats some.
        self._run.define_metric("*", step_metric="train_step")

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "train_step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, run_dir: Path, project: str, config: dict[str, Any], run_id: str):
        import trackio

        name = f"{run_dir.name}-{run_id}"
        self._run = trackio.init(project=project, name=name, resume="allow", config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _run_id(run_dir: Path) -> str:
    """Says that a process continues the run that an earlier one began in this folder."""
    path = run_dir / "run_id"
    if not path.exists():
        path.write_text(fingerprint([str(run_dir.resolve()), time.time_ns()]) + "\n")
    return path.read_text().strip()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of one object of metrics.jsonl by name; inner names stand after a slash."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            found[prefix + name] = float(value)
    return found

"""`metrics.jsonl` is the truth, one object a step; sinks (sinks.py) may fail."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.files import append_line
from mllm.sinks import Sink


class MetricsLog:
    """Appends to a run's `metrics.jsonl` on rank 0; on other ranks it does nothing."""

    def __init__(self, run_dir: Path, *, is_writer: bool, sinks: Sequence[Sink] = ()):
        self._path = run_dir / "metrics.jsonl"
        self._is_writer = is_writer
        self._sinks = sinks

    def write(self, values: dict[str, Any]) -> None:
        if not self._is_writer:
            return
        append_line(self._path, json.dumps(_finite(values)))
        for sink in self._sinks:
            sink.write(values)

    def rewind(self, step: int) -> None:
        """Moves the lines beyond `step` aside: those steps are run again."""
        if self._is_writer:
            cut_after(self._path, step)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def _finite(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut_after(path: Path, step: int) -> None:
    """Moves lines of steps beyond `step` to `NAME.discarded`, so that each step stands once.

    A half line that a kill left at the end is moved too.
    """
    if not path.exists():
        return
    kept: list[str] = []
    discarded: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            is_kept = line.endswith("\n") and json.loads(line)["step"] <= step
        except ValueError:
            is_kept = False
        (kept if is_kept else discarded).append(line)
    if not discarded:
        return
    with open(path.with_name(path.name + ".discarded"), "a", encoding="utf-8") as file:
        file.writelines(line if line.endswith("\n") else line + "\n" for line in discarded)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)

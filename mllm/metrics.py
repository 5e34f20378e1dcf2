"""`metrics.jsonl` is the truth, one object a step; TensorBoard is a sink that may fail."""

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to a run's `metrics.jsonl` on rank 0; on other ranks it does nothing."""

    def __init__(self, run_dir: Path, *, is_writer: bool, tensorboard: bool):
        self._file = None
        if is_writer:
            self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = None
        if is_writer and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(run_dir / "tensorboard")
            except Exception as error:  # a sink never stops training
                print(f"mllm: no TensorBoard: {error}", flush=True)

    def write(self, values: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(_finite(values)) + "\n")
        self._file.flush()
        if self._board is None:
            return
        try:
            for name, value in _flat(values):
                self._board.add_scalar(name, value, values["step"])
        except Exception as error:
            print(f"mllm: TensorBoard stopped: {error}", flush=True)
            self._board = None

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
        if self._board is not None:
            self._board.close()


def _finite(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    flat = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            flat.append((prefix + name, float(value)))
    return flat


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

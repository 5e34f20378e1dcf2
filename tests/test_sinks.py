"""Sinks show what metrics.jsonl has; one that fails or hangs stops nothing."""

import json
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mllm import sinks
from mllm.metrics import MetricsLog
from mllm.sinks import Sink, flat, open_sinks

LINES: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "loss_by_source": {"text": 3.0, "pairs": 1.5}, "applied": True},
    {"step": 2, "loss": 1.0, "loss_by_source": {"text": 2.5}, "note": "no number"},
]


def _write(run_dir: Path, found: list[Sink]) -> None:
    log = MetricsLog(run_dir, is_writer=True, sinks=found)
    for line in LINES:
        log.write(line)
    log.close()


def test_tensorboard_has_the_numbers_of_metrics_jsonl(tmp_path: Path) -> None:
    _write(tmp_path, open_sinks(["tensorboard"], tmp_path, "mllm", {}, 0))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = {
        (name, event.step): event.value
        for name in board.Tags()["scalars"]
        for event in board.Scalars(name)
    }
    truth = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seen == {(name, line["step"]): x for line in truth for name, x in flat(line).items()}
    assert ("loss_by_source/text", 2) in seen


class _Tracker(types.ModuleType):
    """Takes what the real libraries take, which was tried with wandb and trackio as of 2026."""

    def __init__(self, name: str):
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int | None]] = []
        self.is_finished = False

    def init(self, *, project: str, name: str, resume: str, config: dict, **rest: Any) -> Any:
        self.begun.append({"project": project, "name": name, "resume": resume, **rest})
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None: ...

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.is_finished = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_step_and_a_resumed_run_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    tracker = _Tracker(name)
    monkeypatch.setitem(sys.modules, name, tracker)
    for _ in range(2):
        _write(tmp_path, open_sinks([name], tmp_path, "squares", {"seed": 1}, 0))
    assert tracker.is_finished and tracker.begun[0] == tracker.begun[1]
    assert tracker.begun[0]["project"] == "squares" and tracker.begun[0]["resume"] == "allow"
    assert len(tracker.logged) == 4
    values, step = tracker.logged[0]
    assert values["loss"] == 2.0 and values["loss_by_source/pairs"] == 1.5
    assert step == 1 if name == "trackio" else values["train_step"] == 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: Any
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    _write(tmp_path, open_sinks([name], tmp_path, "mllm", {}, 0))
    out = capsys.readouterr().out
    assert out.startswith(f"mllm: {name} stopped: ") and out.count("\n") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


class _Broken:
    def log(self, values: dict[str, float], step: int) -> None:
        raise OSError("no space\nleft")

    def close(self) -> None:
        raise AssertionError("dropped sinks are not closed")


def test_a_failing_sink_is_dropped_with_a_line_and_the_truth_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path, [Sink("board", _Broken)])
    assert "mllm: board stopped: no space left; metrics.jsonl goes on" in capsys.readouterr().out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_sink_that_hangs_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(sinks, "MAX_WAITING", 1)
    release = threading.Event()

    def hang() -> Any:
        release.wait()
        raise OSError

    began = time.monotonic()
    _write(tmp_path, [Sink("slow", hang)])
    assert time.monotonic() - began < 3
    assert "mllm: slow did not end" in capsys.readouterr().out
    release.set()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert os.listdir(tmp_path) == ["metrics.jsonl"]

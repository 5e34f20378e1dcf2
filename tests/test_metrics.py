"""`metrics.jsonl`: each step stands once after a resume."""

import json
import os
from pathlib import Path

import pytest

from mllm.metrics import MetricsLog, cut_after


def test_lines_beyond_the_checkpoint_and_half_lines_are_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3, 4)) + '{"step": 5, "lo'
    )
    cut_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    discarded = (tmp_path / "metrics.jsonl.discarded").read_text().splitlines()
    assert discarded == ['{"step": 3}', '{"step": 4}', '{"step": 5, "lo']
    cut_after(path, 2)
    assert len((tmp_path / "metrics.jsonl.discarded").read_text().splitlines()) == 3
    cut_after(tmp_path / "absent.jsonl", 2)


def test_only_the_writer_writes(tmp_path: Path) -> None:
    MetricsLog(tmp_path, is_writer=False).write({"step": 1})
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, is_writer=True)
    log.write({"step": 1, "loss": float("nan"), "loss_by_source": {"text": float("inf")}})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "loss": None, "loss_by_source": {"text": None}}


def test_a_disk_that_takes_no_line_holds_up_nothing_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, is_writer=True)
    log.write({"step": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    log.write({"step": 2})
    monkeypatch.setattr(os, "write", write)
    log.write({"step": 3})
    assert [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").open()] == [1, 3]
    assert "a line of" in (said := capsys.readouterr().out) and "No space left" in said

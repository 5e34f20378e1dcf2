"""`metrics.jsonl`: each step stands once after a resume; a failing sink stops nothing."""

import json
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
    MetricsLog(tmp_path, is_writer=False, tensorboard=False).write({"step": 1})
    assert not list(tmp_path.iterdir())


def test_a_failing_sink_is_dropped_with_a_line_and_the_truth_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, is_writer=True, tensorboard=True)

    class Broken:
        def add_scalar(self, *_: object) -> None:
            raise OSError("no space")

        def close(self) -> None:
            raise AssertionError("dropped sinks are not closed")

    log._board = Broken()
    log.write({"step": 1, "loss": 2.0, "loss_by_source": {"text": 3.0}})
    log.write({"step": 2, "loss": 1.0})
    log.close()
    assert "TensorBoard stopped: no space" in capsys.readouterr().out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, is_writer=True, tensorboard=False)
    log.write({"step": 1, "loss": float("nan"), "loss_by_source": {"text": float("inf")}})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "loss": None, "loss_by_source": {"text": None}}

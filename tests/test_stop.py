"""When a job saves and stops: `mllm stop`, the time limit, the end of a SLURM job."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mllm import stop
from mllm.config import parse_config, parse_seconds
from mllm.errors import UserError
from mllm.lock import run_lock
from mllm.stop import StopFlag, TimeLimit
from tests.test_lock import hold


class Clock:
    """Stands in for `time` of mllm/stop.py."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(stop.time, "time", lambda: self.now)
        monkeypatch.setattr(stop.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(stop, "_process_start", lambda: self.now - 20)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    with monkeypatch.context() as patches:
        yield Clock(patches)


def steps_done(limit: TimeLimit, clock: Clock, seconds: float, save_at: int, save: float) -> int:
    """Steps of `seconds` until the limit, a save of `save` seconds every `save_at` of them."""
    for step in range(1, 10_000):
        clock.now += seconds
        if limit.is_up():
            return step
        if step % save_at == 0:
            clock.now += save
            limit.saved(save)
    raise AssertionError("never")


def test_the_last_step_and_its_save_end_before_the_limit(clock: Clock) -> None:
    began = clock.now - 20  # of the process: start-up counts
    limit = TimeLimit(1000)
    steps_done(limit, clock, seconds=7, save_at=10, save=40)
    # Room for the save, and another step would not have left it.
    assert began + 1000 - 40 - 7 < clock.now <= began + 1000 - 40


def test_before_any_save_a_share_is_left_for_it(clock: Clock) -> None:
    limit = TimeLimit(500)
    end = clock.now + 480
    steps_done(limit, clock, seconds=3, save_at=10**6, save=0)
    assert end - clock.now == pytest.approx(48, abs=3.1)


def test_a_slow_validation_counts_as_the_longest_step(clock: Clock) -> None:
    limit = TimeLimit(1020)
    end = clock.now + 1000
    clock.now += 100  # a step and its validation
    assert not limit.is_up()
    limit.saved(0.0)  # at once
    while not limit.is_up():
        clock.now += 20
    assert 100 - 20 <= end - clock.now < 100


def test_a_slurm_job_stops_a_minute_before_its_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end = clock.now + 600
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(end)))
    for limit in (TimeLimit(None), TimeLimit(10**6)):
        limit.saved(0.0)
        began = clock.now
        while not limit.is_up():
            clock.now += 1
        assert 60 <= end - clock.now <= 63
        clock.now = began
    assert "saves and stops before" in capsys.readouterr().out


def test_without_a_limit_time_never_stops_a_run(clock: Clock) -> None:
    limit = TimeLimit(None)
    clock.now += 10**9
    assert not limit.is_up()


def test_a_process_knows_when_it_began() -> None:
    code = "import time; time.sleep(1.2); from mllm.stop import _process_start as s; print(s())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert before - 0.1 < float(done.stdout) < before + 1.1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3:55:00", 14_100),
        ("1-12:00:00", 129_600),
        ("90:30", 5430),
        ("90m", 5400),
        ("3h30m", 12_600),
        ("2d", 172_800),
        ("45s", 45),
        ("600", 600),
        (600, 600),
        (0.5, 0.5),
    ],
)
def test_lengths_of_time(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds
    values = yaml.safe_load(f"{{run_dir: r, tokenizer: t, train: {{time_limit: {text}}}}}")
    assert parse_config(values, "c.yaml").train.time_limit_seconds == seconds


@pytest.mark.parametrize("text", ["soon", "", "0", "-5", "3:xx", "1:2:3:4"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"c\.yaml: train"):
        parse_config({"run_dir": "r", "tokenizer": "t", "train": {"time_limit": text}}, "c.yaml")


def test_a_signal_is_heard_at_the_boundary_and_a_second_one_at_once(tmp_path: Path) -> None:
    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in handled}
    try:
        flag = StopFlag(tmp_path, None)
        assert not flag.agreed(False)[0]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert flag.agreed(False)[0]
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        (tmp_path / "stop").touch()
        with run_lock(tmp_path):
            flag = StopFlag(tmp_path, None)
            assert not flag.agreed(False)[0]  # an old request
            (tmp_path / "stop").touch()
            assert flag.agreed(False)[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------ mllm stop


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "metrics.jsonl").write_text('{"step": 41}\n{"step": 42}\n{"st')
    (tmp_path / "checkpoints" / "step-00000042").mkdir(parents=True)
    return tmp_path


def test_stop_says_that_no_job_is_running(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in (None, "", json.dumps({"host": "elsewhere", "pid": 3})):
        if text is not None:
            (run_dir / "lock").write_text(text)
            os.utime(run_dir / "lock", (0, 0))  # nobody touches it any more
        assert stop.main([str(run_dir)]) == 0
        assert capsys.readouterr().out == (
            f"no job is running in {run_dir}: it ended at step 42, which is saved\n"
        )
    assert not (run_dir / "stop").exists()  # it would stop the next job


def test_stop_waits_for_the_end_and_tells_whether_it_saved(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = hold(run_dir)
    command = [sys.executable, "-m", "mllm.cli", "stop", str(run_dir), "--wait"]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    assert f"process {holder.pid} on" in waiting.stdout.readline()
    assert (run_dir / "stop").exists() and waiting.poll() is None
    (run_dir / "metrics.jsonl").write_text('{"step": 43}\n')
    holder.kill()
    holder.wait()
    out, _ = waiting.communicate(timeout=20)
    assert waiting.returncode == 1
    assert out == "it ended at step 43; its last checkpoint is of step 42\n"
    stop.main([str(run_dir)])
    assert "no job is running" in capsys.readouterr().out


def test_a_stop_does_not_wait_for_torch() -> None:
    code = "import sys, mllm.stop; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

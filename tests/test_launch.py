"""`mllm train --num-ranks 2`: signals reach the ranks, and a dead rank ends the job by name."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mllm import engine
from mllm.errors import UserError
from tests.conftest import World
from tests.scenarios import pretrain_config

MLLM = Path(sys.executable).with_name("mllm")


def start(config_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(MLLM), "train", str(config_path), "--num-ranks", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_line(run_dir: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Until `metrics.jsonl` has that many lines."""
    path = run_dir / "metrics.jsonl"
    for _ in range(1200):
        if path.exists() and len(path.read_text().splitlines()) >= number:
            return
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.1)
    raise AssertionError(f"no {number} steps in 2 minutes")


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_sigterm_saves_and_exits_75_and_a_killed_rank_is_named(
    world: World, tmp_path: Path
) -> None:
    config = pretrain_config(world.root, tmp_path / "run")
    config = replace(config, train=replace(config.train, num_steps=100_000, checkpoint_every=10**6))
    values = config.to_dict()
    values["train"]["adam_betas"] = list(values["train"]["adam_betas"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))

    process = start(path)
    wait_for_line(tmp_path / "run", 3, process)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    steps = [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert len(steps) == 1 and "saved step" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)

    process = start(path)
    wait_for_line(tmp_path / "run", int(steps[0].split("-")[1]) + 2, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=90)
    assert (
        process.returncode == 1
        and f"rank 1 on {socket.gethostname()} was killed by signal 9" in output
    ), output
    assert "resumed from" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def test_the_lock_of_a_killed_build_is_removed_and_that_of_a_running_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    locks = [tmp_path / "py311_cpu" / name / "lock" for name in ("killed", "running")]
    for lock in locks:
        lock.parent.mkdir(parents=True)
        lock.touch()
    an_hour_ago = time.time() - 3600
    os.utime(locks[0], (an_hour_ago, an_hour_ago))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    engine._remove_stale_build_locks()
    assert [lock.exists() for lock in locks] == [False, True]
    assert "killed/lock was left by a build that was killed" in capsys.readouterr().out


def test_more_ranks_than_gpus_are_refused_before_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 ranks on this machine, which has 2 GPUs"):
        engine.init_distributed()

"""Ctrl-C to a training job with worker processes: saved, exit 75, nothing left, goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import World
from tests.scenarios import pretrain_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_saves_and_leaves_no_process(
    world: World, tmp_path: Path, number: int
) -> None:
    run_dir = tmp_path / "run"
    values = json.loads(json.dumps(pretrain_config(world.root, run_dir).to_dict()))
    values["data"]["num_workers"] = 2
    values["train"]["num_steps"] = 500
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    shared = set(os.listdir("/dev/shm"))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "mllm" / "train.py"), str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    metrics = run_dir / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert "Traceback" not in out
    saved = [int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*")]
    assert max(saved) == metrics.read_text().count("\n")
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    left = set(os.listdir("/dev/shm")) - shared
    assert not [name for name in left if name.startswith(("torch_", "sem.mp"))]


SLOW_DISK = """
import runpy, sys, time
import mllm.checkpoint_files as files
write = files.write_part
def write_slowly(folder, rank, parts):
    (folder / "began").touch()
    time.sleep(60)
    write(folder, rank, parts)
files.write_part = write_slowly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_second_signal_during_a_save_exits_at_once_and_leaves_a_temporary_folder(
    world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    values = json.loads(json.dumps(pretrain_config(world.root, run_dir).to_dict()))
    values["train"] |= {"num_steps": 2, "checkpoint_every": 500}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-c", SLOW_DISK, str(ROOT / "mllm" / "train.py"), str(config)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    folder = run_dir / "checkpoints"
    end = time.monotonic() + 120
    while not list(folder.glob(".tmp-step-*/began")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None  # it waits until the checkpoint is whole
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert [path.name for path in folder.iterdir()] == [".tmp-step-00000002"]
    subprocess.run([sys.executable, str(ROOT / "mllm" / "train.py"), str(config)], check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000002"]

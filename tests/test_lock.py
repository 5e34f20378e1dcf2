"""A run folder's lock: refused beside a living job, taken over from a dead one."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mllm import lock
from mllm.errors import UserError
from mllm.lock import run_lock

HOLD = """
import sys, time
from pathlib import Path
from mllm.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(run_dir: Path) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_start_is_refused_in_one_line_until_the_first_is_dead(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    with pytest.raises(UserError) as raised, run_lock(tmp_path):
        pass
    text = str(raised.value)
    assert "\n" not in text and f"process {holder.pid} on {socket.gethostname()}" in text
    assert f"mllm stop {tmp_path}" in text
    holder.send_signal(signal.SIGKILL)  # it says nothing more
    holder.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
    started = time.monotonic()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 5
    assert (tmp_path / "lock").read_text() == ""


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    hold(tmp_path).kill()


@pytest.mark.parametrize("lives", [True, False])
def test_a_lock_of_another_host_is_watched_for_a_sign_of_life(
    tmp_path: Path, lives: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that died may be where a queued-again job comes from."""
    monkeypatch.setattr(lock, "WATCH_SECONDS", 1.2)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "node17", "pid": 3}))
    touch = threading.Timer(0.4, os.utime, [path])
    if lives:
        touch.start()
        with pytest.raises(UserError, match="process 3 on node17"), run_lock(tmp_path):
            pass
    else:
        with run_lock(tmp_path):
            assert json.loads(path.read_text())["host"] == socket.gethostname()
    touch.cancel()
    assert "process 3 on node17; looking for" in capsys.readouterr().out


def test_a_holder_touches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)
    with run_lock(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_half_written_lock_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"host": "no')
    with run_lock(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another one"), run_lock(tmp_path / "file" / "run"):
        pass

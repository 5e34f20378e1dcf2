"""One job a run folder: a second start beside a living one is refused.

Two jobs in one folder would prune each other's checkpoints and mix their metrics, and it happens
easily: the `deepspeed` runner does not pass signals on, so that a job that looks stopped trains on.

`lock` in the run folder names host and process of rank 0, which holds a POSIX lock on the file: the
system lets go of it with the process, however that ends, and children do not inherit it. File
systems that do not carry such locks between hosts are why the holder also touches the file every
few seconds, and why one of another host is watched for a while before it is taken over.
"""

import errno
import fcntl
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mllm import dist
from mllm.errors import UserError

LOCK_FILE = "lock"
STOP_FILE = "stop"  # what `mllm stop` leaves; the loop looks for it at each step boundary
TOUCH_SECONDS = 10.0
WATCH_SECONDS = 90.0  # NFS may show the time of a file as it was a minute ago


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Holds the folder's lock. All ranks call it.

    Raises:
        UserError: a living job has it.
    """
    lock, problem = None, None
    if dist.rank() == 0:
        try:
            lock = _Lock(run_dir)
        except UserError as error:
            problem = str(error)
    if problem := dist.broadcast_object(problem):
        raise UserError(problem)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def holder_of(run_dir: Path) -> str | None:
    """The living job that has the folder, as `process 12 on node3`; None: there is none.

    Only looks. A job of another host that was killed is taken for living for a while, where the
    file system does not carry locks.
    """
    path = run_dir / LOCK_FILE
    try:
        text, changed = path.read_text(), path.stat().st_mtime
    except OSError:
        return None
    holder = _parse(text)
    if holder is None:
        return None
    name = f"process {holder['pid']} on {holder['host']}"
    if _is_locked(path):
        return name
    is_elsewhere = holder["host"] != socket.gethostname()
    return name if is_elsewhere and time.time() - changed < WATCH_SECONDS else None


def _is_locked(path: Path) -> bool:
    """Whether another process has a POSIX lock on it. Taking it to see would refuse a start."""
    flock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open(path, "rb") as file:
        found = fcntl.fcntl(file, fcntl.F_GETLK, flock)
    return struct.unpack("hhqqi", found)[0] != fcntl.F_UNLCK


def _parse(text: str | bytes) -> dict | None:
    """What a lock file says; None: nothing, as after a job's end, or half a line."""
    try:
        holder = json.loads(text)
        return {"host": str(holder["host"]), "pid": int(holder["pid"])}
    except (ValueError, KeyError, TypeError):
        return None


class _Lock:
    def __init__(self, run_dir: Path):
        self._path = run_dir / LOCK_FILE
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._take()
            holder = self._holder()
            if holder and holder["host"] != socket.gethostname():
                # Closing it gives the lock back, so none of this may be open meanwhile.
                os.close(self._handle)
                self._watch(holder)
                self._take()
            (run_dir / STOP_FILE).unlink(missing_ok=True)  # meant for a job before this one
            text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n"
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, text.encode(), 0)
            os.fsync(self._handle)
        except OSError as error:
            raise UserError(f"run_dir {run_dir}: {error.strerror}; choose another one") from None
        self._is_released = threading.Event()
        threading.Thread(target=self._touch, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Empties the file; it stays, since one that is removed may be opened at that moment."""
        self._is_released.set()
        os.ftruncate(self._handle, 0)
        os.close(self._handle)

    def _take(self) -> None:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            os.close(self._handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise self._refusal(holder) from None
            raise

    def _holder(self) -> dict | None:
        return _parse(os.pread(self._handle, 4096, 0))

    def _watch(self, holder: dict) -> None:
        """Returns once nothing has touched the file for long enough."""
        before = self._path.stat().st_mtime_ns
        dist.say(
            f"mllm: {self._path} is of process {holder['pid']} on {holder['host']}; looking for "
            f"{WATCH_SECONDS:.0f} s whether it lives"
        )
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, WATCH_SECONDS))
            if self._path.stat().st_mtime_ns != before:
                raise self._refusal(holder)

    def _refusal(self, holder: dict | None) -> UserError:
        who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
        run_dir = self._path.parent
        return UserError(
            f"{run_dir} is being trained by {who}; `mllm stop {run_dir}` saves and stops it, or "
            "choose another run_dir"
        )

    def _touch(self) -> None:
        while not self._is_released.wait(TOUCH_SECONDS):
            with suppress(OSError):  # a file system that is away for a moment
                os.utime(self._path)

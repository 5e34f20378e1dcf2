"""A rank that fails, dies or hangs ends the job within a bounded time, by name.

Each rank has a thread that beats (heartbeat.py), and that ends the process where the loop has not
come on for `train.hang_timeout_seconds`, or where another rank has failed and this one hangs in a
collective with it. One rank a host tells why; the rank at fault shows its traceback.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from torch.distributed import DistError

from mllm import dist
from mllm.errors import UserError
from mllm.heartbeat import Beat, Failure, Heartbeats, judge

LOOK_SECONDS = 2.0  # between two looks at the others' beats, at least
GRACE_SECONDS = 10.0  # for the loop to end by itself once another rank has failed
TELL_SECONDS = 2.0  # for a node's first rank to tell what all its ranks have met
EXIT_SECONDS = 30.0  # for the interpreter's end, which a dead process group may hold up
WAITING_FILES = ("torch/distributed/distributed_c10d.py", "mllm/dist.py")
MESSAGE_LENGTH = 300  # characters of an error, in another rank's line


@contextmanager
def watch(run_dir: Path, timeout_seconds: float) -> Iterator["Watchdog"]:
    """Watches what runs inside. All ranks call it.

    Raises:
        SystemExit: this rank of several failed, or another one did; all is said.
    """
    watchdog = Watchdog(run_dir, timeout_seconds)
    try:
        yield watchdog
    except UserError as error:
        watchdog.refused(error)
        raise
    except Exception as error:
        if dist.world_size() > 1:
            raise SystemExit(watchdog.failed(error)) from None
        watchdog.ended(_summary(error))
        raise
    except BaseException as error:  # a second signal
        watchdog.ended(f"stopped at once: {_summary(error)}")
        raise
    else:
        watchdog.close()


class Watchdog:
    """Tells where this rank is, and sees to it that the job ends where one does not come on."""

    def __init__(self, run_dir: Path, timeout_seconds: float):
        self._run_dir, self._timeout = run_dir, timeout_seconds
        self._period = min(5.0, max(0.5, timeout_seconds / 10))
        self._place = (0, "start-up")
        # Start-up has no limit: the first look at a large corpus takes hours. Where one rank hangs
        # there and others wait in a collective, the process group's own timeout ends it.
        self._touched: float | None = None
        self._count = 0
        self._ended: str | None = None
        self._is_cut_off = False
        self._is_over = threading.Event()
        self._conclusion = threading.Lock()  # one thread tells, once
        self._files = Heartbeats(run_dir)
        self._siblings: list[Beat] = []
        if dist.rank() == 0:
            self._files.clear()
        dist.barrier()
        self._beat()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def touch(self, step: int, phase: str) -> None:
        """The loop has come to `phase` of `step`."""
        self._place = (step, phase)
        self._touched = time.monotonic()

    def close(self) -> None:
        """The rank has done its work."""
        self._stop()
        self._files.remove(dist.rank())

    # ------------------------------------------------------------------ the loop has raised

    def refused(self, error: UserError) -> None:
        """A mistake of the user's, which may be this rank's alone.

        A node's first rank tells its own where the process ends; others tell what that one does
        not meet too.
        """
        with self._conclusion:
            self._ended = str(error)[:MESSAGE_LENGTH]
            self._beat()
            where = f"rank {dist.rank()} on {_host()}"
            self._files.note(Failure([dist.rank()], f"{where}: {self._ended}", code=2))
            if not dist.is_first_of_node() and not self._is_told_by_first():
                _say(f"mllm: error: {where}: {error}")
        self._stop()

    def _is_told_by_first(self) -> bool:
        """Whether the node's first rank meets the error that this one ended with."""
        end = time.monotonic() + TELL_SECONDS
        while time.monotonic() < end:
            here = [beat for beat in self._files.read().values() if beat.host == _host()]
            first = min(here, key=lambda beat: beat.rank, default=None)
            if first and first.rank != dist.rank() and first.ended == self._ended:
                return True
            time.sleep(0.05)
        return False

    def failed(self, error: Exception) -> int:
        """Tells of an exception in the loop of one of several ranks; returns the exit code."""
        with self._conclusion:
            place = self._now().place
            if _is_lost_connection(error):
                self._is_cut_off = True
                message = " ".join(str(error).split())[:MESSAGE_LENGTH]
                failure = self._find_failure(
                    f"the connection to other ranks broke at {place} ({message})",
                    is_hang="imed out" in message,
                )
            else:
                text = f"rank {dist.rank()} on {_host()} failed at {place}: {_summary(error)}"
                failure = self._files.note(Failure([dist.rank()], text[:MESSAGE_LENGTH]))
            if dist.rank() in failure.ranks or not _is_lost_connection(error):
                _say(_prefixed("".join(traceback.format_exception(error))))
            self._tell(failure)
            self._ended = failure.text[:MESSAGE_LENGTH]
            self._beat()
        self._stop()
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)
        return failure.code

    def ended(self, how: str) -> None:
        """Ended before its work was done, and what it has to say is said elsewhere."""
        with self._conclusion:
            self._ended = how
            self._beat()
            self._files.note(Failure([dist.rank()], f"rank {dist.rank()} on {_host()}: {how}"))
        self._stop()

    # -------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        noted_at: float | None = None
        last = time.monotonic()
        while not self._is_over.wait(self._period):
            now = time.monotonic()
            if now - last > 3 * self._period and self._touched is not None:
                self._touched += now - last  # all of the process stood still: it was suspended
            last = now
            self._beat()
            failure = self._files.failure() or self._dead_sibling()
            if failure is not None:
                noted_at = noted_at or now
                if dist.rank() in failure.ranks or now - noted_at > GRACE_SECONDS:
                    self._end(failure)
            elif (touched := self._touched) is not None and now - touched > self._timeout:
                self._is_over.wait(LOOK_SECONDS)
                if self._touched == touched:  # else it came on just now
                    self._end(None)

    def _dead_sibling(self) -> Failure | None:
        """A rank of this node that was killed: where no launcher looks after them, as with srun."""
        if len(self._siblings) < int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1:
            beats = self._files.read().values()
            self._siblings = [b for b in beats if b.host == _host() and b.rank != dist.rank()]
        if not any(beat.is_dead for beat in self._siblings):
            return None
        self._siblings = []  # it may have told how it ended since
        beats_now = self._files.read()
        if not any(beat.is_dead for beat in beats_now.values()):
            return None
        return self._files.note(Failure(*judge({}, beats_now, is_hang=False, seconds=0.0)))

    def _end(self, failure: Failure | None) -> None:
        """Ends a process whose loop hangs, unless the loop is telling of an error by itself."""
        if not self._conclusion.acquire(blocking=False) or self._is_over.is_set():
            return
        code = 1
        try:
            stacks = self._dump_stacks()
            failure = failure or self._find_failure("", is_hang=True)
            code = failure.code
            if dist.rank() in failure.ranks or (not failure.ranks and self._is_speaker(failure)):
                _say(_prefixed(stacks))
            self._tell(failure)
            self._ended = failure.text[:MESSAGE_LENGTH]
            self._beat()
        finally:
            os._exit(code)

    def _dump_stacks(self) -> str:
        """The stacks of all threads, written to the run folder too."""
        beat = self._now()
        path = self._run_dir / f"hang-rank-{dist.rank()}.txt"
        with suppress(OSError), path.open("w+") as file:
            file.write(f"{beat.name} at {beat.place}; the newest call comes first\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read()
        return f"its stacks could not be written to {path}\n"

    def _find_failure(self, symptom: str, *, is_hang: bool) -> Failure:
        """The job's first failure: what another rank has noted, else what the beats say."""
        before = self._files.read()
        end = time.monotonic() + max(3 * self._period, LOOK_SECONDS)
        while time.monotonic() < end:
            if found := self._files.failure():
                return found
            if any(beat.is_dead for beat in self._files.read().values()):
                break
            time.sleep(0.2)
            if threading.current_thread() is self._thread:
                self._beat()
        ranks, text = judge(before, self._files.read(), is_hang=is_hang, seconds=self._timeout)
        if symptom and not ranks:
            text = f"{symptom}; {text}"
        return self._files.note(Failure(ranks, text))

    def _tell(self, failure: Failure) -> None:
        if dist.rank() in failure.ranks:
            _say(f"mllm: {failure.text}")
        elif self._is_speaker(failure):
            _say(f"mllm: rank {dist.rank()} on {_host()} stops: {failure.text}")

    def _is_speaker(self, failure: Failure) -> bool:
        """One rank on each host tells of the others: the lowest that is not at fault."""
        here = [
            beat.rank
            for beat in self._files.read().values()
            if beat.host == _host() and beat.rank not in failure.ranks and not beat.is_dead
        ]
        return dist.rank() == min(here, default=0)

    def _now(self) -> Beat:
        step, phase = self._place
        return Beat(
            rank=dist.rank(),
            host=_host(),
            pid=os.getpid(),
            step=step,
            phase=phase,
            waits=self._is_cut_off or _is_in_collective(),
            count=self._count,
            ended=self._ended,
        )

    def _beat(self) -> None:
        self._count += 1
        with suppress(OSError):  # a file system that is away for a moment
            self._files.write(self._now())

    def _stop(self) -> None:
        self._is_over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)


def _is_lost_connection(error: Exception) -> bool:
    """Whether a collective failed, which is how another rank's end looks from here."""
    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and ("/gloo/" in str(error) or "NCCL" in str(error))


def _is_in_collective() -> bool:
    """Whether a thread of this process is inside a call of torch.distributed."""
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            # NCCL's calls return at once; what waits then is the code that reads the result.
            if frame.f_code.co_filename.endswith(WAITING_FILES) or (
                frame.f_code.co_filename.endswith("mllm/engine.py")
                and frame.f_code.co_name == "result"
            ):
                return True
            frame = frame.f_back
    return False


def _summary(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _prefixed(text: str) -> str:
    """Each line with its rank: lines of several ranks may mix."""
    prefix = f"[rank {dist.rank()} on {_host()}] "
    return "\n".join(prefix + line for line in text.rstrip("\n").split("\n"))


def _host() -> str:
    return socket.gethostname()


def _say(text: str) -> None:
    with suppress(OSError):  # whoever read them may be gone, and the rank must end all the same
        sys.stdout.flush()
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))  # whole, beside other ranks

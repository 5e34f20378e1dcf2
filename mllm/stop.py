"""`mllm stop RUN`: asks a running job to save and stop; it exits with 75 after its current step."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mllm import dist
from mllm.command import Parser
from mllm.errors import UserError
from mllm.heartbeat import Heartbeats
from mllm.lock import STOP_FILE, holder_of

RECENT_STEPS = 50  # the longest of which the time limit leaves room for
SLURM_MARGIN_SECONDS = 60.0  # before the end of a SLURM job, for the ranks to come down
FIRST_SAVE_SHARE = 0.1  # of the time that was given, for the first save, whose length nobody knows
FIRST_SAVE_SECONDS = 120.0  # at most


class StopFlag:
    """SIGTERM, SIGUSR1, Ctrl-C or `mllm stop` on any rank, or rank 0's clock; all hear of it at
    one step.

    Args:
        run_dir: where `mllm stop` leaves its file.
        time_limit: seconds from the start of the process.
    """

    def __init__(self, run_dir: Path, time_limit: float | None):
        self._stop_file = run_dir / STOP_FILE
        self._is_set = False
        self._time = TimeLimit(time_limit)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._is_set:
            raise SystemExit(128 + number)  # the second one means now
        self._is_set = True

    def agreed(self, has_failed: bool) -> tuple[bool, bool]:
        """Whether to save and stop, and whether `has_failed` on any rank.

        All ranks call it, at every step boundary.
        """
        is_set = self._is_set
        if dist.rank() == 0:
            is_set |= self._stop_file.exists() or self._time.is_up()
        stops, failures = dist.all_reduce_sum([float(is_set), float(has_failed)])
        return stops > 0, failures > 0

    def saved(self, longest_seconds: float | None) -> None:
        """A checkpoint was begun since `agreed`; the longest whole one took so long, if known."""
        self._time.saved(longest_seconds)


class TimeLimit:
    """Whether another step, and the save after it, would end too late.

    The end is the earlier of `train.time_limit` and, in a SLURM job, a minute before its end.
    """

    def __init__(self, seconds: float | None):
        now = time.time()
        ends = []
        if seconds is not None:
            ends.append(_process_start() + seconds)
        if "SLURM_JOB_END_TIME" in os.environ:
            ends.append(float(os.environ["SLURM_JOB_END_TIME"]) - SLURM_MARGIN_SECONDS)
        self._left = min(ends) - now if ends else None  # at `_began`
        self._began = self._boundary = time.monotonic()
        self._steps: list[float] = []  # seconds, validation included
        self._save_seconds: float | None = None
        if self._left is not None:
            end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now + self._left))
            dist.say(f"mllm: saves and stops before {end}")

    def is_up(self) -> bool:
        """Told at a step boundary."""
        if self._left is None:
            return False
        now = time.monotonic()
        self._steps = [*self._steps[1 - RECENT_STEPS :], now - self._boundary]
        self._boundary = now
        save_seconds = self._save_seconds
        if save_seconds is None:
            save_seconds = min(FIRST_SAVE_SECONDS, FIRST_SAVE_SHARE * self._left)
        return now + max(self._steps) + save_seconds > self._began + self._left

    def saved(self, longest_seconds: float | None) -> None:
        """What passed since the last step boundary was for a save, and is of no step."""
        self._save_seconds = longest_seconds
        self._boundary = time.monotonic()


def _process_start() -> float:
    """When this process began, in seconds since 1970."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm stop",
        description=__doc__,
        epilog="mllm stop runs/demo/pretrain\nmllm stop runs/demo/pretrain --wait",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument(
        "--wait", action="store_true", help="return when it has ended; 1 where it did not save"
    )
    args = parser.parse_args(argv)
    if not (args.run / "config.yaml").is_file():
        raise UserError(f"{args.run} is no run folder (it has no config.yaml)")
    job = holder_of(args.run)
    if job is None:
        print(f"no job is running in {args.run}: {_state(args.run)[0]}")
        return 0
    (args.run / STOP_FILE).touch()
    print(f"{args.run} ({job}) will save and stop after its current step", flush=True)
    if not args.wait:
        return 0
    while holder_of(args.run) == job:
        time.sleep(0.5)
    text, is_saved = _state(args.run)
    print(text)
    return 0 if is_saved else 1


def _state(run_dir: Path) -> tuple[str, bool]:
    """How far a run came, and whether that is saved."""
    saved = max((int(p.name[5:]) for p in (run_dir / "checkpoints").glob("step-*")), default=0)
    done = 0
    with suppress(OSError):
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError):  # half a line, where it was killed
                done = int(json.loads(line)["step"])
    if saved >= done:
        return f"it ended at step {done}, which is saved", True
    failure = Heartbeats(run_dir).failure()
    why = f" ({failure.text})" if failure else ""
    return f"it ended at step {done}{why}; its last checkpoint is of step {saved}", False

"""What the ranks of a job tell each other about themselves, in files of the run folder.

    ranks/rank-00003.json   where rank 3 is; its watchdog rewrites it every few seconds
    ranks/failed.json       the first failure of the job; whoever finds a cause writes it once

Files, not the process group: they are there when a rank is dead, stopped or cut off. Beats are
counted, so that no clock of another node is compared with ours.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = "ranks"
PHASES = ("start-up", "data loading", "step", "validation", "checkpoint")
BEAT_BYTES = 1024  # of a file, padded, so that one write replaces all of it
NAMED_RANKS = 8  # at most, in one sentence


@dataclass(frozen=True)
class Beat:
    """One rank, as it last said."""

    rank: int
    host: str
    pid: int
    step: int  # that it is at, as in metrics.jsonl
    phase: str  # of PHASES
    waits: bool  # in a collective
    count: int  # of beats
    ended: str | None = None  # how, where it could tell

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def place(self) -> str:
        return "start-up" if self.phase == "start-up" else f"step {self.step} ({self.phase})"

    @property
    def _is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_dead(self) -> bool:
        """Its process is of this host, is gone, and has not said why."""
        return self.ended is None and self._is_here and _process_state(self.pid) in (None, "Z")

    @property
    def is_stopped(self) -> bool:
        return self._is_here and _process_state(self.pid) in ("T", "t")


@dataclass(frozen=True)
class Failure:
    """The first failure of a job."""

    ranks: list[int]  # at fault; none: a connection, or nobody can tell
    text: str  # one line
    code: int = 1  # that all ranks exit with
    time: float = field(default_factory=time.time)  # tells it from an earlier job's


class Heartbeats:
    """The files of one job. Every rank has one of these."""

    def __init__(self, run_dir: Path):
        self._folder = run_dir / FOLDER
        self._handle: int | None = None

    def clear(self) -> None:
        """Removes what an earlier job left."""
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def write(self, beat: Beat) -> None:
        if self._handle is None:
            path = self._folder / f"rank-{beat.rank:05d}.json"
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        text = json.dumps(asdict(beat))
        os.pwrite(self._handle, text.encode().ljust(BEAT_BYTES), 0)
        os.fsync(self._handle)  # else NFS keeps it to itself

    def remove(self, rank: int) -> None:
        """After a clean end."""
        if self._handle is not None:
            os.close(self._handle)
        with suppress(OSError):
            (self._folder / f"rank-{rank:05d}.json").unlink(missing_ok=True)
            self._folder.rmdir()  # the last one does

    def read(self) -> dict[int, Beat]:
        """Rank to its last beat."""
        beats = {}
        for path in self._folder.glob("rank-*.json"):
            with suppress(OSError, ValueError, TypeError):  # half written: the next time
                beat = Beat(**json.loads(path.read_bytes()))
                beats[beat.rank] = beat
        return beats

    def failure(self) -> Failure | None:
        """The job's first failure, once there is one."""
        with suppress(OSError, ValueError, TypeError):
            return Failure(**json.loads((self._folder / "failed.json").read_bytes()))
        return None

    def note(self, failure: Failure) -> Failure:
        """Writes a failure unless one stands there; returns the one that does."""
        path = self._folder / "failed.json"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            for _ in range(10):  # another rank may be writing it
                if found := self.failure():
                    return found
                time.sleep(0.1)
            return failure
        except OSError:  # the run had no folder yet, or its file system is away
            return failure
        with suppress(OSError), os.fdopen(handle, "w") as file:
            file.write(json.dumps(asdict(failure)))
            file.flush()
            os.fsync(file.fileno())
        return failure


def killed(rank: int, host: str, number: int) -> str:
    """One line on a rank that a signal ended."""
    hint = " (out of memory? see dmesg)" if number == 9 else ""
    return f"rank {rank} on {host} was killed by signal {number}{hint}"


def judge(
    before: dict[int, Beat], after: dict[int, Beat], *, is_hang: bool, seconds: float
) -> tuple[list[int], str]:
    """Who holds the others up, from beats that were read twice, some periods apart.

    Args:
        is_hang: nobody has come on for `seconds`, so live ranks may be at fault too; else a
            connection broke.

    Returns:
        The ranks at fault, and one line about them. No ranks: all live and none is behind.
    """
    dead = [beat for beat in after.values() if beat.is_dead]
    if dead:
        beat = dead[0]
        text = f"{_names(dead)} died, last seen at {beat.place}: process {beat.pid} was killed"
        return _ranks(dead), f"{text} (out of memory? see dmesg)"
    still = [
        beat
        for rank, beat in after.items()
        if beat.ended is None and rank in before and before[rank].count == beat.count
    ]
    if still:
        beat = still[0]
        if beat.is_stopped:
            why = f"process {beat.pid} is stopped (`kill -CONT {beat.pid}` lets it go on)"
        else:
            why = f"process {beat.pid} or its node is gone or stuck"
        return _ranks(still), f"{_names(still)} gave no sign of life after {beat.place}: {why}"
    if not is_hang:
        return [], f"all ranks live; look at the network between {_hosts(after)}"
    behind = _behind(after)
    if behind:
        others = [beat for beat in after.values() if beat not in behind]
        text = f"{_names(behind)} did not come beyond {behind[0].place} in {seconds:g} s"
        return _ranks(behind), f"{text}; {_names(others, with_host=False)} waited"
    if len(after) == 1:
        beat = next(iter(after.values()))
        return [beat.rank], f"{beat.name} did not come beyond {beat.place} in {seconds:g} s"
    places = sorted({beat.place for beat in after.values()})
    return [], (
        f"all ranks live and wait for each other at {' and '.join(places)} for {seconds:g} s; "
        f"look at the network between {_hosts(after)}"
    )


def _behind(beats: dict[int, Beat]) -> list[Beat]:
    """Those that are not in a collective while others are; else those at the earliest place."""
    everyone = list(beats.values())
    busy = [beat for beat in everyone if not beat.waits]
    if 0 < len(busy) < len(everyone):
        return busy
    if not busy:
        return []  # a collective that some have left and others have not is no one's fault
    places = [(beat.step, PHASES.index(beat.phase)) for beat in everyone]
    first = [b for b, place in zip(everyone, places, strict=True) if place == min(places)]
    return first if len(first) < len(everyone) else []


def _ranks(beats: list[Beat]) -> list[int]:
    return sorted(beat.rank for beat in beats)


def _names(beats: list[Beat], *, with_host: bool = True) -> str:
    """Ranks and, where they share one, their host."""
    beats = sorted(beats, key=lambda beat: beat.rank)
    hosts = {beat.host for beat in beats}
    shown = ", ".join(str(beat.rank) for beat in beats[:NAMED_RANKS])
    more = f" and {len(beats) - NAMED_RANKS} more" if len(beats) > NAMED_RANKS else ""
    where = f" on {', '.join(sorted(hosts)[:NAMED_RANKS])}" if with_host else ""
    return f"{'rank' if len(beats) == 1 else 'ranks'} {shown}{more}{where}"


def _hosts(beats: dict[int, Beat]) -> str:
    hosts = sorted({beat.host for beat in beats.values()})
    return " and ".join(hosts[:NAMED_RANKS]) if len(hosts) > 1 else "the ranks"


def _process_state(pid: int) -> str | None:
    """One letter, as in `ps`; None: there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None

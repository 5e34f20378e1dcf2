"""`mllm train` whose ranks kill themselves (SIGKILL) at a given moment and say in which phase.

    python tests/killed_train.py < STARTS

STARTS are lines of JSON, {"config", "num_ranks", "kill", "log"}; each is one `mllm train`, by
`mllm.launch`, whose exit code is a line of the output. What it prints goes to `log`. Ranks are
forked from here instead of started anew: importing is most of what a start costs.

`kill` is {"rank", "phase", "entry", "delay", "event", "kills_all", "log"} or null. The rank counts
its entries of the phase (the n-th step, the n-th manifest ...). In that entry it dies `delay`
seconds later, at the file operation number `event` (Python's audit events, which come before the
operation), or in the middle of a shard's bytes. An `instant` is `delay` seconds after the first
step, whatever runs then. With `kills_all`, all ranks die at that moment. A line in the kill's `log`
says what was under way. Each parameter group has another weight decay.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import deepspeed  # noqa: F401  # by far the most of it

import mllm.train
from mllm import checkpoint_files, files, launch
from mllm.saving import Saver
from tests.world_changes import plant_two_decays

PHASES = {  # phase: where its function lies
    "step": (mllm.train, "_step"),
    "copy": (Saver, "save"),
    "shard write": (checkpoint_files, "write_part"),
    "manifest": (checkpoint_files, "write_manifest"),
    "rename": (checkpoint_files, "rename"),
    "latest": (checkpoint_files, "move_latest"),
    "prune": (checkpoint_files, "prune"),
}
EVENTS = {  # what counts as an operation of a phase
    "manifest": ("open", "os.rename", "os.remove"),
    "rename": ("open", "os.rename"),
    "latest": ("open", "os.rename"),
    "prune": ("os.remove", "os.rmdir"),
}


class Killer:
    def __init__(self, kill: dict[str, Any]):
        self.kill = kill
        self.active: dict[int, str] = {}  # phase by thread
        self.entries = 0
        self.is_armed = False  # inside the entry that was asked for
        self.num_events = 0
        self.num_bytes = 0

    def plant(self) -> None:
        for phase, (owner, name) in PHASES.items():
            setattr(owner, name, self.announced(phase, getattr(owner, name)))
        phase = self.kill["phase"]
        if phase in EVENTS:
            sys.addaudithook(self.on_event)
        if phase == "shard write":
            write = files.HashedFile.write

            def write_some(file: files.HashedFile, data: Any) -> int:
                return self.write(write, file, data)

            files.HashedFile.write = write_some  # type: ignore[method-assign]

    def announced(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.active[threading.get_ident()] = phase
            is_counted = phase == self.kill["phase"] or (
                phase == "step" and self.kill["phase"] == "instant"
            )
            self.entries += is_counted
            is_now = is_counted and self.entries == self.kill["entry"]
            if is_now:
                self.is_armed, self.num_events = True, 0
                if "delay" in self.kill:
                    threading.Timer(self.kill["delay"], self.die).start()
            try:
                return function(*args, **kwargs)
            finally:
                if is_now and phase in EVENTS:
                    if self.num_events or phase != "prune":
                        self.die()
                    self.entries -= 1  # there was nothing to prune yet
                    self.is_armed = False
                self.active.pop(threading.get_ident(), None)

        return run

    def on_event(self, event: str, _: Any) -> None:
        here = self.active.get(threading.get_ident())
        if self.is_armed and here == self.kill["phase"] and event in EVENTS[here]:
            self.num_events += 1
            if self.num_events > self.kill["event"]:
                self.die()

    def write(self, write: Callable[..., int], file: files.HashedFile, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.is_armed:
            self.num_bytes += len(view)
            if self.num_bytes > self.kill["event"] * 10_000:
                write(file, view[: len(view) // 2])
                self.die()
        return write(file, view)

    def die(self) -> None:
        self.is_armed = False  # what follows opens a file too
        entry = {**self.kill, "fell_in": sorted(set(self.active.values())) or ["between"]}
        with open(self.kill["log"], "a") as log:
            log.write(json.dumps(entry) + "\n")
        ranks = [os.getpid()]
        if self.kill["kills_all"]:
            parent = os.getppid()
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            ranks = [*(int(pid) for pid in children if int(pid) != os.getpid()), os.getpid()]
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
        time.sleep(60)  # the signal is on its way


class ForkedRank:
    """In place of `subprocess.Popen` in the launcher: the same process, forked."""

    def __init__(self, command: list[str], env: dict[str, str], **_: Any):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.environ.update(env)
            end(lambda: run_rank(command[2:]))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def end(function: Callable[[], int]) -> None:
    """Ends this process with the exit code that `function` gives."""
    code = 1
    try:
        code = function()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def run_rank(argv: list[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the launcher's own, until the loop has others
    plant_two_decays()
    kill = json.loads(os.environ["KILL"])
    if kill and kill["rank"] == int(os.environ["RANK"]):
        Killer(kill).plant()
    return mllm.train.main(argv)


def run_launcher(start: dict[str, Any]) -> int:
    log = os.open(start["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["KILL"] = json.dumps(start["kill"])
    return launch.main([start["config"], "--num-ranks", str(start["num_ranks"])])


def main() -> None:
    launch.subprocess = SimpleNamespace(Popen=ForkedRank)  # type: ignore[assignment]
    for line in sys.stdin:
        launcher = os.fork()
        if launcher == 0:
            end(partial(run_launcher, json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

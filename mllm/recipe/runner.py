"""Runs a recipe's steps, one process each, and passes signals on to the one that runs.

A step is skipped if it ended well before, by the same command and from the same inputs. A training
step that was interrupted goes on from its checkpoint. What was made from inputs that are made anew
is deleted and made anew too, but only where the caller says so.
"""

import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from mllm.errors import UserError
from mllm.files import write_aside
from mllm.recipe.journal import Journal
from mllm.recipe.steps import Recipe, Step

EXIT_STOPPED = 75  # saved and stopped before its end
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies

Verdict = Literal["done", "run", "redo"]


def run_recipe(recipe: Recipe, *, first: int = 0, redo: bool = False) -> int:
    """Runs what is not done, from step number `first` on. Returns the exit code.

    Args:
        redo: results of inputs that changed may be deleted.

    Raises:
        UserError: there are such results and they may not; another recipe works in this folder.
    """
    recipe.out.mkdir(parents=True, exist_ok=True)
    with _lock(recipe.out):
        journal = Journal(recipe.out / "times.json")
        steps = recipe.steps[first:]
        verdicts = judge(steps, journal)
        stale = [step for step in steps if verdicts[step.name] == "redo"]
        if stale and not redo:
            names = ", ".join(f"{step.name!r} in {step.folder}" for step in stale)
            raise UserError(
                f"made from inputs that have changed: {names}; --redo deletes that and makes it "
                "anew, or move it away"
            )
        for step in steps:
            if verdicts[step.name] != "done":
                _check_inputs(step)
        for step in steps:
            if verdicts[step.name] == "done":
                print(f"[{step.name}] {describe(step, 'done', journal)}", flush=True)
                continue
            if verdicts[step.name] == "redo":
                _clear(step.folder)
                journal.forget(step)
            if code := run_step(step, journal):
                return code
    return 0


def judge(steps: Sequence[Step], journal: Journal) -> dict[str, Verdict]:
    """What is to be done with each step: nothing, run it (or let it go on), or make it anew."""
    verdicts: dict[str, Verdict] = {}
    for step in steps:
        inputs_change = journal.is_of_other_inputs(step) or any(
            verdicts.get(name, "done") != "done" for name in step.needs
        )
        if inputs_change and step.name in journal.entries and step.folder.exists():
            verdicts[step.name] = "redo"
        else:
            is_done = journal.is_done(step) and not inputs_change
            verdicts[step.name] = "done" if is_done else "run"
    return verdicts


def describe(step: Step, verdict: Verdict, journal: Journal) -> str:
    """A line's worth on what will become of a step."""
    seconds = journal.entries.get(step.name, {}).get("seconds", 0.0)
    if verdict == "done":
        return f"done before, {seconds:.0f} s"
    if verdict == "redo":
        return f"to be made anew: its inputs change ({step.folder} is deleted)"
    return f"goes on, {seconds:.0f} s so far" if seconds else "to be run"


def run_step(step: Step, journal: Journal) -> int:
    """Runs a step's command and notes its time. Returns its exit code, or 75 after a signal."""
    print(f"\n[{step.name}] {shlex.join(step.shown)}", flush=True)
    if step.moved_config:
        path, text = step.moved_config
        with write_aside(path) as file:
            file.write(text)
    journal.begin(step)
    began = time.monotonic()
    code, was_asked = 1, False
    try:
        code, was_asked = _run(step)
    finally:
        seconds = time.monotonic() - began
        journal.end(step, seconds, is_done=code == 0)
    print(f"[{step.name}] {seconds:.0f} s", flush=True)
    if code == 0 and was_asked:
        print("mllm: stopped before the next step; the same command goes on", file=sys.stderr)
        return EXIT_STOPPED
    if code:
        how = "saved and stopped" if code == EXIT_STOPPED else f"ended with {code}"
        print(f"mllm: {step.name} {how}; the same command goes on", file=sys.stderr)
    return code


def _run(step: Step) -> tuple[int, bool]:
    """The exit code of a step's process, and whether a signal came meanwhile."""
    asked: list[int] = []
    process: subprocess.Popen | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        # Not `print`: a handler may interrupt one.
        os.write(2, f"\nmllm: {signal.Signals(number).name}, passed on to {step.name}\n".encode())
        if process is not None:
            _ask(process, step, len(asked), number)

    # `nohup` has SIGHUP ignored, and so it stays.
    handled = [n for n in PASSED_ON if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        process = subprocess.Popen(
            _with_free_port(step.argv),
            stdout=subprocess.DEVNULL if step.is_quiet else None,
            # Ctrl-C reaches it through us, once: a second signal would mean "now".
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        if asked:
            _ask(process, step, 1, asked[0])
        while (code := process.poll()) is None:
            if asked and step.stop_file:
                # Again and again: a run that is just starting clears old requests.
                _touch(step.stop_file)
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (code if code >= 0 else 128 - code), bool(asked)


def _ask(process: subprocess.Popen, step: Step, count: int, number: int) -> None:
    """Hands a signal to a step's processes; the first one to a launched run as a file.

    The `deepspeed` runner would die of the signal and leave its ranks behind.
    """
    if step.stop_file and count == 1:
        _touch(step.stop_file)
    elif process.poll() is None:
        os.killpg(process.pid, number)


def _check_inputs(step: Step) -> None:
    """Before the steps ahead of it have taken their days."""
    for path in step.wants:
        if not Path(path).exists():
            raise UserError(
                f"step {step.name!r} reads {path}, which is not there and which no earlier step "
                "makes; mend its config"
            )


def _clear(folder: Path) -> None:
    """Empties a folder that may be a link to another disk."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _touch(path: Path) -> None:
    if path.parent.is_dir():
        path.touch()


def _end_with_parent() -> None:
    """In the new process: SIGTERM, by which a run saves, should the recipe be killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _with_free_port(argv: list[str]) -> list[str]:
    """The launcher's default port may be another run's."""
    if Path(argv[0]).name != "deepspeed" or any(word.startswith("--master_port") for word in argv):
        return argv
    from mllm.dist import free_port  # torch: seconds, which other steps need not wait for

    return [argv[0], "--master_port", str(free_port()), *argv[1:]]


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    with open(out / "recipe.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{out}: another recipe is at work here; wait for it") from None
        yield

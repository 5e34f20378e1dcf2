"""Runs an executor under a progress bar, and ends with an error when a worker process dies."""

import atexit
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import multiprocess
import multiprocess.forkserver
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mllm.errors import UserError

POLL_SECONDS = 0.2
GRACE_SECONDS = 10  # between a worker's death and the pool's own word of an error


def run_watched(
    executor: PipelineExecutor, what: str, stage_dir: Path, rank_bytes: list[int]
) -> None:
    """Runs all tasks of an executor; raises what a task raised.

    datatrove's pool waits for ever for a task whose process was killed (out of memory, `kill -9`),
    so the pool runs in a thread and its processes are watched from here.

    Args:
        what: words for the progress bar.
        stage_dir: of the stage that the executor runs.
        rank_bytes: weight of each rank, for the bar.

    Raises:
        UserError: A worker process died.
    """
    raised: list[BaseException] = []

    def work() -> None:
        try:
            executor.run()
        except BaseException as error:
            raised.append(error)

    if isinstance(executor, LocalPipelineExecutor) and executor.workers > 1:
        _start_servers()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        with _Bar(what, stage_dir, rank_bytes) as bar:
            _watch(thread, bar.update)
    except BaseException:
        for process in multiprocess.active_children():
            process.kill()
        # At exit the pool would wait for a lock that a killed process holds. The resource tracker
        # then removes its semaphores.
        atexit.unregister(multiprocess.util._exit_function)
        raise
    if raised:
        raise raised[0]


def _start_servers() -> None:
    """Starts what starts the pool's processes, with the null device for its stderr.

    The pool replaces killed processes until we are gone; the fork server then prints that one was
    half made, and the resource tracker what it cleared away. Errors of tasks come by the pool.
    """
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        multiprocess.forkserver.ensure_running()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _watch(thread: threading.Thread, update: Callable[[], None]) -> None:
    known: set[int] = set()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        update()
        processes = {process.pid for process in multiprocess.active_children()}
        if known - processes:
            # The pool may be ending: then the thread ends too, with or without an error.
            thread.join(GRACE_SECONDS)
            if thread.is_alive() and known - {p.pid for p in multiprocess.active_children()}:
                raise UserError(
                    "a worker process died, killed by someone or for want of memory; run the same "
                    "command again, it goes on where it stands (fewer --workers need less memory)"
                )
        known = processes


class _Bar:
    """Bytes done of all ranks, records a second, ETA. Silent when stderr is no terminal."""

    def __init__(self, what: str, stage_dir: Path, rank_bytes: list[int]) -> None:
        self._stage_dir, self._rank_bytes = stage_dir, rank_bytes
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._is_shown = console.is_terminal
        self._task = self._progress.add_task(what, total=max(sum(rank_bytes), 1), rate="")
        self._started = self._polled = time.monotonic()
        self._records_before = self._counted()[0] if self._is_shown else 0  # of a run that stopped

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._poll()
        self._progress.stop()

    def update(self) -> None:
        if self._is_shown and time.monotonic() - self._polled >= 1:
            self._poll()

    def _poll(self) -> None:
        if not self._is_shown:
            return
        self._polled = time.monotonic()
        done = {int(path.stem) for path in (self._stage_dir / "done").glob("*.json")}
        records, sizes = self._counted()
        num_bytes = sum(self._rank_bytes[rank] for rank in done)
        num_bytes += sum(size for rank, size in sizes.items() if rank not in done)
        seconds = self._polled - self._started
        rate = f"{(records - self._records_before) / seconds:,.0f} records/s" if sizes else ""
        self._progress.update(self._task, completed=num_bytes, rate=rate)

    def _counted(self) -> tuple[int, dict[int, int]]:
        """Records of all ranks that count them, and bytes of each; no stage of pairs does."""
        records, sizes = 0, {}
        for path in (self._stage_dir / "counters").glob("*"):
            count, _, size = path.read_text().partition(" ")
            records += int(count or 0)
            sizes[int(path.name)] = int(size or 0)
        return records, sizes

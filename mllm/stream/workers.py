"""Loader workers: processes that compose steps, and what keeps them from outliving the trainer.

They are forked from one small server process (`forkserver`) that has imported the stream and
nothing of the trainer: a fork of the trainer itself would carry its threads' locks and perhaps a
CUDA context. SIGINT and SIGTERM are blocked in all of them before they start, so Ctrl-C stops the
trainer alone, which saves and then ends them; they end by themselves when it dies.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mllm.errors import UserError
from mllm.stream.parcel import Parcel, pack

SHARED_MEMORY_DIR = "/dev/shm"
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Failure:
    """An exception on its way from a worker to the loop."""

    def __init__(self, error: BaseException) -> None:
        self._traceback = "".join(traceback.format_exception(error))
        try:
            self._error = pickle.dumps(error)
            pickle.loads(self._error)
        except Exception:  # its constructor takes more than its message
            self._error = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))

    def reraise(self) -> None:
        """Raises the same type and message; its cause prints the worker's traceback."""
        raise pickle.loads(self._error) from WorkerTraceback(self._traceback)


class WorkerTraceback(Exception):
    """The traceback of a loader worker, as text."""

    def __str__(self) -> str:
        return f"in a loader worker:\n{self.args[0]}"


class StepDataset(Dataset[Parcel]):
    """Step to the parcel of one rank's batches. The stream opens its files anew in each worker."""

    def __init__(self, stream: Any, split: dict[str, int]) -> None:
        self._stream: Any = stream
        self._split = split

    def __getstate__(self) -> dict[str, Any]:
        # The stream travels as bytes: where a worker cannot open it, that is an error of the first
        # step like any other, not of the worker's start.
        state = {"stream": pickle.dumps(self._stream), "fingerprint": self._stream.fingerprint}
        return {"_split": self._split, "_packed": state, "_stream": None}

    def __getitem__(self, step: int) -> Parcel:
        try:
            if self._stream is None:
                self._open()
            return pack(compose(self._stream, step, self._split), shared=True)
        except Exception as error:
            return pack(Failure(error), shared=True)

    def _open(self) -> None:
        packed: dict[str, Any] = self._packed  # type: ignore[attr-defined]
        stream = pickle.loads(packed["stream"])
        if stream.fingerprint != packed["fingerprint"]:
            raise UserError(
                "data.mixture: an index was rebuilt while training started; start it again"
            )
        self._stream = stream


def compose(stream: Any, step: int, split: dict[str, int]) -> list[Any]:
    """One rank's batches of a step: one per micro-step."""
    num_micro_steps = stream.grad_accum_steps(split["world_size"], split["micro_batch_size"])
    return [stream.batch(step, micro_step, **split) for micro_step in range(num_micro_steps)]


class Workers:
    """Processes that compose the steps of `steps` in order, a bounded number ahead."""

    def __init__(
        self,
        stream: Any,
        split: dict[str, int],
        steps: range,
        *,
        num_workers: int,
        prefetch_steps: int,
        pin_memory: bool,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mllm.stream.stream", "mllm.stream.pairs", __name__])
        per_worker = max(1, prefetch_steps // num_workers)
        check_shared_memory(
            stream.bytes_per_step(steps[0] if steps else 0, split["world_size"]),
            # Prefetched, handed out, and one in the making in each worker.
            num_steps=per_worker * num_workers + 1 + num_workers,
        )
        loader: DataLoader[Parcel] = DataLoader(
            StepDataset(stream, split),
            batch_size=None,
            sampler=steps,
            num_workers=num_workers,
            prefetch_factor=per_worker,
            collate_fn=_as_it_is,
            worker_init_fn=_live_with_the_parent,
            multiprocessing_context=context,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else it draws from the trainer's own
        )
        before = set(multiprocessing.active_children())
        with _signals_blocked(), _main_module_hidden():
            self._iterator: Any = iter(loader)
        self.processes: list[BaseProcess] = [
            process for process in multiprocessing.active_children() if process not in before
        ]

    def take(self) -> list[Any]:
        """The batches of the next step; raises what its worker raised."""
        try:
            batches = next(self._iterator).unpack()
        except (RuntimeError, OSError, EOFError) as error:
            # A dead worker shows as any of these: its exit is noticed late, its sockets at once.
            for process in self.processes:
                process.join(timeout=0.2)
            dead = [process for process in self.processes if process.exitcode is not None]
            if not dead:
                raise
            raise UserError(
                f"{' and '.join(_how_it_ended(process) for process in dead)}; "
                "the last checkpoint stands: resume with fewer data.num_workers or more memory"
            ) from error
        if isinstance(batches, Failure):
            batches.reraise()
        return batches

    def close(self) -> None:
        """Ends all workers, each after the step it is at, or after 5 s by force."""
        self._iterator._shutdown_workers()  # what its __del__ does, at a time that we choose
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _how_it_ended(process: BaseProcess) -> str:
    code = process.exitcode
    assert code is not None
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"loader worker {process.pid} {how}"


def check_shared_memory(bytes_per_step: int, num_steps: int) -> None:
    """UserError where /dev/shm cannot hold the steps in flight: a write beyond its end kills."""
    try:
        found = os.statvfs(SHARED_MEMORY_DIR)
    except OSError:
        return  # no such place here: torch finds another
    free = found.f_bavail * found.f_frsize
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed = bytes_per_step * num_steps * ranks_here
    if needed > free:
        raise UserError(
            f"{SHARED_MEMORY_DIR} has {free / 2**20:,.0f} MiB free, the loader workers of this "
            f"machine need {needed / 2**20:,.0f} MiB; make it larger (docker run --shm-size), or "
            "set data.num_workers to 0"
        )


def _as_it_is(parcel: Any) -> Any:
    return parcel


def _live_with_the_parent(worker_id: int) -> None:
    """Runs first in each worker."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()  # also returns when the trainer was killed
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started inside never see the stop signals; this one gets them afterwards."""
    resource_tracker.ensure_running()  # started inside, it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps multiprocessing from importing `__main__` in the workers.

    That may be mllm/train.py with model and engine: seconds and hundreds of megabytes each.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in vars(main)
    }
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)

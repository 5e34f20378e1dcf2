"""Saves checkpoints beside training: each rank copies what it holds, then writes it in a thread.

At a step boundary every rank takes a copy in host memory (snapshot.py); its thread writes that and
hashes it on the way (checkpoint_files.py). Rank 0's thread waits for all parts and makes them a
checkpoint. Threads talk through the file system alone: collectives belong to the loop, which hears
at each step boundary whether a rank could not write. Such a checkpoint is told and forgotten; the
one before stands, and training goes on.
"""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from mllm import checkpoint_files as files
from mllm import dist
from mllm.checkpoint import DEEPSPEED_TAG, TIED, TrainState
from mllm.checkpoint_store import Uploader
from mllm.config import Config
from mllm.engine import Captured, Engine
from mllm.engine_config import deepspeed_config
from mllm.errors import UserError
from mllm.files import size_text
from mllm.plan import checkpoint_bytes
from mllm.snapshot import HostCopies
from mllm.zero_memory import parameter_numels

LOOK_SECONDS = 0.02  # between rank 0's looks for what the others have written
UPLOAD_SECONDS = 5.0  # between two signs of life while the last upload runs
CLOSE_SECONDS = 60.0  # that a run which failed gives a checkpoint under way


class Saver:
    """The checkpoints of a run, one at a time.

    Args:
        run_dir: of the run.
        extra: small files that each checkpoint has, by name.
        keep: how many checkpoints stay.
        expected_bytes: of a checkpoint; with less free, none is begun: what is left of the disk
            is for the metrics of a run that goes on.
        is_async: writes beside training; False: in the loop, without a copy in host memory.
        store: URL that finished checkpoints are uploaded to.
    """

    def __init__(
        self,
        run_dir: Path,
        extra: dict[str, files.Fill],
        keep: int,
        expected_bytes: int = 0,
        *,
        is_async: bool = True,
        store: str | None = None,
    ):
        self._folder = run_dir / "checkpoints"
        self._extra, self._keep, self._expected_bytes = extra, keep, expected_bytes
        self._copies = HostCopies() if is_async else None
        self._job: _Job | None = None
        self._news: list[str] = []
        self._has_told_of_waiting = False
        self._is_whole = True  # the last that was begun
        self.saved_step = 0  # of the newest checkpoint that is known to be whole
        self.longest_seconds: float | None = None  # of those that are written
        self._blocked_seconds = 0.0
        if dist.rank() == 0:
            files.remove_leftovers(self._folder)
        self._uploader: Uploader | None = None
        problem = None
        if store and dist.rank() == 0:
            try:
                self._uploader = Uploader(store, run_dir, keep)
            except (OSError, UserError) as error:
                problem = f"train.checkpoint_store {error}; mend it or leave the key out"
        if problem := dist.first_problem(problem):
            raise UserError(problem)

    def save(self, engine: Engine, state: TrainState, *, is_last: bool = False) -> None:
        """Begins a checkpoint of this moment. All ranks call it, and `finish` at the end.

        Args:
            is_last: nothing trains meanwhile, so that no copy is needed.
        """
        began = time.monotonic()
        if self._job is not None and not self._job.is_over() and not self._has_told_of_waiting:
            self._has_told_of_waiting = True
            self._news.append(
                f"mllm: step {state.step} waits until the checkpoint of step {self._job.step} is "
                "written; a larger train.checkpoint_every leaves it more time"
            )
        self.finish()  # never two at once
        self._job = job = _Job(self._folder, state.step, self._keep, self._uploader)
        try:
            if dist.rank() == 0:
                job.make_folder(self._expected_bytes)
        except OSError as error:
            job.fail(error)
        job.has_failed = dist.broadcast_object(job.has_failed)
        if not job.has_failed:
            try:
                copies = None if is_last else self._copies
                job.captured = engine.capture(job.aside, DEEPSPEED_TAG, copies)
            except OSError as error:
                job.fail(error)
            job.extra = {files.STATE: files.json_file(asdict(state)), **self._extra}
        if self._copies is not None and not is_last:
            job.blocked_seconds = time.monotonic() - began
        job.start()
        if self._copies is None:
            self.finish()
        self._blocked_seconds += time.monotonic() - began

    def take_blocked_seconds(self) -> float:
        """How long saving held the loop up since this was last asked."""
        seconds, self._blocked_seconds = self._blocked_seconds, 0.0
        return round(seconds, 4)

    @property
    def has_failed(self) -> bool:
        """Whether this rank could not write its part."""
        return self._job is not None and self._job.has_failed

    def give_up(self) -> None:
        """Some rank could not write its part: rank 0 waits no longer for it."""
        if self._job is not None:
            self._job.is_given_up.set()

    def finish(self) -> bool:
        """Waits until the checkpoint under way is written. All ranks call it.

        Returns:
            Whether the last that was begun is whole.
        """
        if (job := self._job) is None:
            return self._is_whole
        job.part_is_over.wait()
        if dist.all_reduce_sum([float(job.has_failed)])[0]:
            self.give_up()
        job.join()
        self._is_whole = dist.broadcast_object(job.is_whole)
        if self._is_whole:
            self.saved_step = job.step
            self.longest_seconds = max(self.longest_seconds or 0.0, job.seconds)
        elif dist.rank() == 0:
            shutil.rmtree(job.aside, ignore_errors=True)  # now that nobody writes there
        self._news += job.news()
        self._job = None
        return self._is_whole

    def finish_uploads(self, is_alive: Callable[[], None]) -> None:
        """Waits until the store has what it will get, and calls `is_alive` now and then."""
        while self._uploader is not None and not self._uploader.finish(UPLOAD_SECONDS):
            is_alive()

    def close(self) -> None:
        """Gives a checkpoint under way some time, though this rank has failed elsewhere."""
        if self._job is not None:
            self._job.join(CLOSE_SECONDS)

    def news(self) -> list[str]:
        """Lines about checkpoints, each once, for rank 0 to say."""
        news = self._news + (self._job.news() if self._job is not None else [])
        self._news = []
        return news + (self._uploader.news() if self._uploader is not None else [])


def checkpoint_size(module: nn.Module, config: Config) -> int:
    """Bytes of a checkpoint of `module`, before DeepSpeed has it."""
    precision, world_size = config.train.precision, dist.world_size()
    settings = deepspeed_config(config, precision, world_size)
    groups = parameter_numels(module, config)
    size = checkpoint_bytes(module, groups, settings, precision, world_size)["bytes"]
    return size + (4 * groups.num_trainable if config.train.ema_decay else 0)


def check_room(run_dir: Path, num_bytes: int, keep: int) -> None:
    """Looks whether the disk has room for checkpoints of `num_bytes`. All ranks call it.

    Raises:
        UserError: not for a single one. Where fewer fit than are kept, a line says so.
    """
    problem = None
    if dist.rank() == 0:
        present = len(files.checkpoints(run_dir / "checkpoints"))
        needed = max(1, keep + 1 - present) * num_bytes  # one is written before the oldest goes
        free = shutil.disk_usage(run_dir).free
        text = (
            f"{run_dir}: {size_text(free)} of disk free; train.keep_checkpoints {keep} and one "
            f"being written take {size_text(needed)} more, {size_text(num_bytes)} each; free "
            "space, or choose another run_dir"
        )
        if free < num_bytes:
            problem = text
        elif free < needed:
            dist.say(f"mllm: {text}")
    if problem := dist.first_problem(problem):
        raise UserError(problem)


class _Job:
    """One checkpoint, as one rank sees it."""

    def __init__(self, folder: Path, step: int, keep: int, uploader: Uploader | None):
        self.step = step
        self.final = folder / f"step-{step:08d}"
        self.aside = folder / f".tmp-{self.final.name}"
        self.extra: dict[str, files.Fill] = {}
        self.blocked_seconds: float | None = None  # None: training waited all the time
        self.seconds = 0.0  # that it took in all
        self.has_failed = False
        self.is_whole = False  # known to rank 0
        self.part_is_over = threading.Event()
        self.is_given_up = threading.Event()
        self._keep, self._uploader = keep, uploader
        self.captured = Captured({}, {})
        self._news: list[str] = []
        # A daemon: a second signal ends the process at once and leaves the temporary folder.
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def make_folder(self, expected_bytes: int) -> None:
        shutil.rmtree(self.aside, ignore_errors=True)
        (self.aside / DEEPSPEED_TAG).mkdir(parents=True)
        free = shutil.disk_usage(self.aside).free
        if free < expected_bytes:
            words = f"{os.strerror(errno.ENOSPC)} ({free:,} bytes for {expected_bytes:,})"
            raise OSError(errno.ENOSPC, words)

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def fail(self, error: Exception) -> None:
        """This checkpoint will not be: says so."""
        self.has_failed = True
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        print(
            f"mllm: rank {dist.rank()}: checkpoint of step {self.step} NOT written to "
            f"{self.final.parent}: {reason}; free disk space there; training goes on from the one "
            "before",
            flush=True,
        )

    def news(self) -> list[str]:
        news, self._news = self._news, []
        return news

    def _run(self) -> None:
        began = time.monotonic()
        try:
            if not self.has_failed:
                self._write_part()
                self.part_is_over.set()
                if dist.rank() == 0 and (manifest := self._complete()):
                    num_bytes = sum(entry["bytes"] for entry in manifest.values())
                    waited = self.blocked_seconds
                    self._news.append(
                        f"checkpoint of step {self.step}: {size_text(num_bytes)} written in "
                        f"{time.monotonic() - began:.2f} s"
                        + ("" if waited is None else f"; training waited {waited:.3f} s")
                    )
        except Exception as error:  # whatever it is, training goes on
            self.fail(error)
        finally:
            self.captured = Captured({}, {})
            self.seconds = time.monotonic() - began
            self.part_is_over.set()

    def _write_part(self) -> None:
        part = {name: files.torch_file(value) for name, value in self.captured.files.items()}
        if dist.rank() == 0:
            # An export has the same names below `model.`; the tied head is stored once.
            part |= {files.WEIGHTS: _weights_file(self.captured.weights), **self.extra}
            if self.captured.averages:
                part[files.AVERAGE] = _weights_file(self.captured.averages)
        files.write_part(self.aside, dist.rank(), part)

    def _complete(self) -> files.Manifest | None:
        """Rank 0's end of it; None: another rank failed."""
        while (manifest := files.find_parts(self.aside, dist.world_size())) is None:
            if self.is_given_up.wait(LOOK_SECONDS):
                return None
        manifest = files.write_manifest(self.aside, dist.world_size(), manifest)
        files.rename(self.aside, self.final)
        self.is_whole = True
        files.move_latest(self.final)
        if self._uploader is not None:
            self._uploader.submit(self.final)
        files.prune(self.final, self._keep)
        return manifest


def _weights_file(weights: dict[str, torch.Tensor]) -> files.Fill:
    """An export has the same names below `model.`; the tied head is stored once."""
    named = {name.removeprefix("model."): value for name, value in weights.items()}
    named.pop(TIED, None)
    return files.safetensors_file(named)

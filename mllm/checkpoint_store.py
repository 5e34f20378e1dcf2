"""Finished checkpoints in an object store (`train.checkpoint_store`), for a disk that may be lost.

URL/step-00000100/   a checkpoint as on disk; manifest.json goes up last
URL/run/             what a run folder needs to go on: config.yaml, stream.json, metrics, ledger

Rank 0's thread uploads beside training, and a fault of the store never stops that: it is retried,
told, and left to the next checkpoint. At start, the newest whole checkpoint is fetched where the
run folder has none as new. DeepSpeed's files in a checkpoint are pickles: whoever can write to the
store can run code in the next start.
"""

import io
import shutil
import threading
import time
from pathlib import Path
from typing import IO

from corpora.transfer import RemoteSettings
from corpora.transport import fetch_range, list_folder, put_object, remove_object, stat_object
from mllm import checkpoint_files as files
from mllm import dist
from mllm.checkpoint import newest_valid
from mllm.errors import UserError
from mllm.files import in_threads, size_text, write_aside, write_hashed

RUN_FILES = (
    "config.yaml",
    "stream.json",
    "metrics.jsonl",
    "ledger.jsonl",
    "rollbacks.json",
    "run_id",
)
RANGE_BYTES = 32 << 20  # of one request; as many are in memory as files are read at once


def take_back(url: str, step: int) -> None:
    """Makes checkpoints beyond `step` none: a run that was rolled back must not fetch them.

    Raises:
        OSError, UserError: the store would not.
    """
    url, settings = url.rstrip("/"), RemoteSettings.from_environment()
    for name in stored_checkpoints(url, settings):
        folder = f"{url}/{name}"
        if name > f"step-{step:08d}" and files.MANIFEST in list_folder(folder, settings):
            remove_object(f"{folder}/{files.MANIFEST}", settings)


class Uploader:
    """Uploads a run's checkpoints, one at a time and the newest first. On rank 0.

    Args:
        url: of the store.
        run_dir: of the run.
        keep: how many checkpoints stay in the store.

    Raises:
        UserError, OSError: the store does not take a first small file.
    """

    def __init__(self, url: str, run_dir: Path, keep: int):
        self._url, self._run_dir, self._keep = url.rstrip("/"), run_dir, keep
        self._settings = RemoteSettings.from_environment()
        self._put(run_dir / RUN_FILES[0], f"run/{RUN_FILES[0]}")
        self._next: Path | None = None
        self._is_closing = False
        self._news: list[str] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Puts a checkpoint next; one that still waits is left out for it."""
        with self._changed:
            self._next = checkpoint
            self._changed.notify()

    def finish(self, seconds: float) -> bool:
        """Waits so long at most; True once all is uploaded, or given up."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def news(self) -> list[str]:
        """Lines about uploads, each once."""
        news, self._news = self._news, []
        return news

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next or self._is_closing)
                checkpoint, self._next = self._next, None
            if checkpoint is None:
                return
            try:
                self._upload(checkpoint)
            except (OSError, UserError, ValueError) as error:
                reason = "was pruned before" if not checkpoint.exists() else str(error)
                self._news.append(
                    f"mllm: {checkpoint.name} NOT uploaded to {self._url}: {reason}; training goes "
                    "on and the next checkpoint is tried"
                )

    def _upload(self, checkpoint: Path) -> None:
        began = time.monotonic()
        manifest = files.read_manifest((checkpoint / files.MANIFEST).read_bytes())
        jobs = [(checkpoint / name, f"{checkpoint.name}/{name}") for name in manifest]
        run_files = [self._run_dir / name for name in RUN_FILES]
        jobs += [(path, f"run/{path.name}") for path in run_files if path.exists()]
        in_threads(lambda job: self._put(*job), jobs, files.THREADS)
        self._put(checkpoint / files.MANIFEST, f"{checkpoint.name}/{files.MANIFEST}")
        num_bytes = sum(entry["bytes"] for entry in manifest.values())
        self._news.append(
            f"{checkpoint.name}: {size_text(num_bytes)} uploaded to {self._url} in "
            f"{time.monotonic() - began:.1f} s"
        )
        for name in stored_checkpoints(self._url, self._settings)[: -self._keep]:
            if name < checkpoint.name:
                folder = f"{self._url}/{name}"
                if files.MANIFEST in list_folder(folder, self._settings):
                    remove_object(f"{folder}/{files.MANIFEST}", self._settings)
                remove_object(folder, self._settings, recursive=True)

    def _put(self, path: Path, name: str) -> None:
        put_object(f"{self._url}/{name}", path, self._settings)


def stored_checkpoints(url: str, settings: RemoteSettings) -> list[str]:
    """Names of checkpoints in a store, whole or not, oldest first."""
    names = list_folder(url, settings, may_be_absent=True)
    return sorted(name for name in names if name.startswith("step-"))


def fetch_newer(url: str, run_dir: Path) -> None:
    """Brings the newest whole checkpoint here, if the run folder has none as new. All ranks call.

    Raises:
        UserError: nothing is here, and the store cannot be read or holds damaged checkpoints only:
            a run that starts anew would in the end push them out.
    """
    problem = None
    if dist.rank() == 0:
        try:
            _fetch_newer(url.rstrip("/"), run_dir)
        except (OSError, UserError) as error:
            text = f"train.checkpoint_store {error}"
            if files.checkpoints(run_dir / "checkpoints"):
                dist.say(f"mllm: {text}; going on from {run_dir}")
            else:
                problem = f"{text}; mend it, or leave the key out to start anew"
    if problem := dist.first_problem(problem):
        raise UserError(problem)


def _fetch_newer(url: str, run_dir: Path) -> None:
    settings = RemoteSettings.from_environment()
    names = stored_checkpoints(url, settings)
    here = newest_valid(run_dir) if names else None
    problems = []
    for name in reversed(names):
        if here is not None and name <= here.name:
            return
        if files.MANIFEST not in list_folder(f"{url}/{name}", settings):
            continue  # an upload that did not come to its end
        try:
            _fetch(f"{url}/{name}", run_dir / "checkpoints" / name, settings)
        except (UserError, ValueError) as error:
            problems.append(f"{url}/{name}: {error}")
            dist.say(f"mllm: passing over {problems[-1]}")
            continue
        present = list_folder(f"{url}/run", settings)
        for part in RUN_FILES:
            if part in present and not (run_dir / part).exists():
                with write_aside(run_dir / part, "wb") as file:
                    _read(f"{url}/run/{part}", settings, file)
        return
    if problems and here is None:
        raise UserError(f"{problems[0]}, and no other is whole")


def _fetch(url: str, final: Path, settings: RemoteSettings) -> None:
    """A checkpoint, hashed while it comes.

    Raises:
        UserError, ValueError: it is damaged.
    """
    began = time.monotonic()
    aside = final.with_name(f".tmp-{final.name}")
    shutil.rmtree(aside, ignore_errors=True)
    text = io.BytesIO()
    _read(f"{url}/{files.MANIFEST}", settings, text)
    manifest = files.read_manifest(text.getvalue())

    def fetch(name: str) -> None:
        entry = write_hashed(aside / name, lambda file: _read(f"{url}/{name}", settings, file))
        if entry != manifest[name]:
            raise UserError(f"{name} is not what its manifest says")

    try:
        in_threads(fetch, manifest, files.THREADS)
        write_hashed(aside / files.MANIFEST, files.bytes_file(text.getvalue()))
        files.rename(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size = size_text(sum(entry["bytes"] for entry in manifest.values()))
    dist.say(f"{final.name}: {size} fetched from {url} in {time.monotonic() - began:.1f} s")


def _read(url: str, settings: RemoteSettings, file: IO[bytes]) -> None:
    size, version = stat_object(url, settings)
    for start in range(0, size, RANGE_BYTES):
        stop = min(start + RANGE_BYTES, size)
        file.write(fetch_range(url, start, stop, version, settings))

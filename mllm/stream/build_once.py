"""Folders beside the index that are built once, by whichever process comes first.

    NAME.lock          held by the process that builds; the kernel frees it when that process dies
    NAME.unfinished/   what is being built; after a kill the next process takes it over
    NAME/              whole, and never changed again

A folder is either whole or absent under its name. No name holds a process id, so a kill leaves
nothing that the next start does not use: `NAME.unfinished` is continued and renamed, and the lock
is removed with it.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from mllm.files import fsync_dir


def build_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder` by `fill(folder_to_fill)` unless it is there, or another process makes it.

    Waits for that other process; takes over if it dies.

    Raises:
        OSError: The folder is not writable, the disk is full, or its file system knows no locks.
    """
    if folder.is_dir():
        return
    lock_path = folder.with_name(f"{folder.name}.lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(lock_path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The lock file is removed only after the folder is whole. So a process that waited for a
        # removed one, or made a new one, finds the folder here.
        if not folder.is_dir():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            unfinished.mkdir(exist_ok=True)
            fill(unfinished)
            _sync(unfinished)
            unfinished.rename(folder)
            fsync_dir(folder.parent)
        lock_path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    fsync_dir(folder)

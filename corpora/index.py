"""Indexes: where each sample of each shard lies, so that reading is random access.

    INDEX_DIR/shards/NAME.npz            a sidecar per shard (corpora/sidecar.py)
    INDEX_DIR/arrays-FINGERPRINT/*.npy   all sidecars consolidated, memory-mapped by the reader
    INDEX_DIR/index.json                 names the arrays and the shards; written last
    INDEX_DIR/lock                       held by the process that indexes

INDEX_DIR is `CORPUS_DIR/index` unless shards are read-only or remote and another is given.
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from corpora.consolidate import consolidate
from corpora.sidecar import (
    ShardSummary,
    index_shard,
    open_stamped,
    read_sidecar,
    read_summary,
    sidecar_path,
    write_sidecar,
)
from corpora.storage import is_remote, list_shards
from corpora.workers import each_shard
from mllm.command import progress
from mllm.errors import UserError

MAX_EXTENSIONS = 65_535  # of a corpus; each reader holds them
PROBLEMS = 1000  # that `build_index` gives back; index.json counts all bad samples


def default_index_dir(corpus_dir: str | Path, index_dir: str | Path | None) -> Path:
    """Where the index of a corpus lies. UserError for a remote corpus without one."""
    if index_dir is not None:
        return Path(index_dir)
    if is_remote(corpus_dir):
        raise UserError(f"{corpus_dir}: the index of a remote corpus is local; give --index-dir D")
    return Path(corpus_dir) / "index"


def build_index(
    corpus_dir: str | Path, index_dir: str | Path | None = None, workers: int = 1
) -> list[str]:
    """Indexes every shard of a corpus and consolidates.

    Args:
        corpus_dir: A folder or URL that holds the shards.
        index_dir: Where the index goes; `CORPUS_DIR/index` by default.
        workers: Processes over shards.

    Returns:
        Why samples will be masked, the first PROBLEMS of them.

    Raises:
        UserError: A shard is truncated or no plain tar file. The index stands as it was; shards
            already read are not read again.
    """
    index_dir = default_index_dir(corpus_dir, index_dir)
    names = list_shards(corpus_dir)
    try:
        (index_dir / "shards").mkdir(parents=True, exist_ok=True)
        with _alone(index_dir):
            summaries = list(
                progress(
                    each_shard(partial(_summary, corpus_dir, index_dir), names, workers),
                    "indexing shards",
                    total=len(names),
                    num_bytes=lambda summary: summary.size,
                )
            )
            _check_extensions(corpus_dir, summaries)
            sidecars = (read_sidecar(sidecar_path(index_dir, s.name), s) for s in summaries)
            consolidate(sidecars, summaries, index_dir)
            _remove_strays(index_dir, set(names))
    except PermissionError as error:
        raise UserError(f"{error.filename}: not writable; name another with --index-dir") from None
    problems = itertools.chain.from_iterable(summary.problems for summary in summaries)
    return list(itertools.islice(problems, PROBLEMS))


def _summary(corpus_dir: str | Path, index_dir: Path, name: str) -> ShardSummary:
    """Of one shard: from its sidecar while the shard is unchanged, else by reading it."""
    path = sidecar_path(index_dir, name)
    known = read_summary(path)
    if known is not None:
        file, mtime_ns = open_stamped(corpus_dir, name)
        if (known.name, known.size, known.mtime_ns) == (name, file.size, mtime_ns):
            return known
    sidecar = index_shard(corpus_dir, name)
    write_sidecar(sidecar, path)
    return sidecar.summary


@contextlib.contextmanager
def _alone(index_dir: Path) -> Iterator[None]:
    """Waits for another process that indexes into the same folder, whose work is then found done.

    The kernel frees the lock of a process that dies.
    """
    with open(index_dir / "lock", "w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: on one's own guard
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_extensions(corpus_dir: str | Path, summaries: list[ShardSummary]) -> None:
    """Refuses names such as `2024.01.31-photo.jpg`: too many extensions to hold in memory."""
    extensions = {name for summary in summaries for name in summary.extensions}
    if len(extensions) > MAX_EXTENSIONS:
        example = max(extensions, key=lambda name: (name.count("."), name))
        raise UserError(
            f"{corpus_dir}: {len(extensions):,} member extensions, such as .{example}; a key ends "
            "at the first dot of a name: rename the members to KEY.EXTENSION"
        )


def _remove_strays(index_dir: Path, names: set[str]) -> None:
    """Removes the sidecars of shards that are gone, and what a killed process left half-written."""
    long_ago = time.time() - 86_400  # younger ones may belong to a process at work
    with os.scandir(index_dir / "shards") as entries:
        for entry in entries:
            if entry.name.endswith(".npz"):
                is_stray = entry.name.removesuffix(".npz") not in names
            else:
                is_stray = entry.stat().st_mtime < long_ago
            if is_stray:
                Path(entry.path).unlink(missing_ok=True)
    for aside in index_dir.glob("arrays.tmp-*"):
        if aside.stat().st_mtime < long_ago:
            shutil.rmtree(aside, ignore_errors=True)

"""Writing files so that a half-written one is never taken for whole: aside, fsync, rename."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def fsync_dir(path: Path) -> None:
    """Makes the renames inside a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def write_aside(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens `path.tmp-PID` and renames it to `path` once it is whole and on disk.

    If the body raises, or the disk is full, the temporary file is removed and `path` stands as
    it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        fsync_dir(path.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            name_full_disk(error, path)
        raise


def name_full_disk(error: OSError, path: str | Path) -> None:
    """Puts `path` into the error of a full disk, which the system leaves without one."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
        error.filename = str(path)


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, aside first."""
    with write_aside(path) as file:
        file.write(json_text(value, indent=1) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON for a UTF-8 file: all escaped where a string (a file's name) has no UTF-8."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """16 hex digits over the canonical JSON of `value`: equal settings, equal fingerprint."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]

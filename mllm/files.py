"""Writing files so that a half-written one is never taken for whole: aside, fsync, rename."""

import errno
import hashlib
import io
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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


class HashedFile(io.FileIO):
    """A new file that knows its size and SHA-256 as it grows."""

    def __init__(self, path: str | Path):
        super().__init__(path, "w")
        self.num_bytes = 0
        self.problem: OSError | None = None  # the first that the system had
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Writes all of `data`, any contiguous buffer."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.problem = self.problem or error
            raise
        self._digest.update(view)
        self.num_bytes += done
        return done

    def entry(self) -> dict[str, Any]:
        """Its line in a manifest."""
        return {"bytes": self.num_bytes, "sha256": self._digest.hexdigest()}


def write_hashed(path: Path, fill: Callable[[HashedFile], object]) -> dict[str, Any]:
    """Makes a file, has `fill` write it, puts it on disk, and gives back its manifest entry.

    Raises:
        OSError: the system's own, where a library that wrote had another name for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with HashedFile(path) as file:
        try:
            fill(file)
            os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            problem = file.problem or error
            if isinstance(problem, OSError):
                name_full_disk(problem, path)
            raise problem from None
        return file.entry()


def fingerprint(value: Any) -> str:
    """16 hex digits over the canonical JSON of `value`: equal settings, equal fingerprint."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def size_text(num_bytes: float) -> str:
    """For people: in MB, from 100 MB on in GB."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> list[Result]:
    """`function` of each item. The threads do not keep the process alive: an exit is at once.

    Raises:
        The first exception of any, once no thread works any more.
    """
    results: dict[int, Result] = {}
    todo: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
    problems: list[BaseException] = []
    for entry in enumerate(items):
        todo.put(entry)

    def work() -> None:
        try:
            while not problems:
                number, item = todo.get_nowait()
                results[number] = function(item)
        except queue.Empty:
            pass
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return [results[number] for number in sorted(results)]


def append_line(path: str | Path, text: str) -> None:
    """Appends a line to a log in one write, so that lines of several ranks do not mix.

    A disk that does not take it is told, and holds up nothing: what is logged goes on.
    """
    line = text.encode("utf-8", "backslashreplace") + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, line) < len(line):
                os.ftruncate(handle, size)  # half a line would spoil the next one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)
    except OSError as error:
        print(f"mllm: a line of {path} is lost: {error.strerror}; free space there", flush=True)

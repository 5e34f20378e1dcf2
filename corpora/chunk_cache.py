"""A bounded folder of chunks of remote shards, shared by the processes of one machine.

    lock         its flock guards writing and evicting; its text is the bytes in use
    aside        the chunk being written; a dead writer's is overwritten by the next
    chunks/NAME  the bytes of a chunk, then their CRC-32
    claims/NAME  whoever holds its flock is fetching that chunk

Readers take no lock: a chunk appears by rename and an open file outlives its eviction. fsspec's
own caches do not fit: `blockcache` and `filecache` keep everything for ever, and write in place;
diskcache unpickles what it finds in its folder.
"""

import fcntl
import logging
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from corpora.transfer import count

CHECKSUM_BYTES = 4
KEPT_SHARE = 0.9  # what an eviction leaves, so that not every chunk scans the folder
TOUCH_SECONDS = 5.0  # between two notes that a chunk was used
MAX_VERIFIED = 1 << 16  # chunks that a process remembers having verified
MAX_RECENT = 4  # chunks held in memory while none can be stored
STORE_AGAIN_SECONDS = 300.0  # after a full disk
STALE_CLAIM_SECONDS = 3600.0

LOG = logging.getLogger("mllm.corpora")


class ChunkCache:
    """Chunks by name. Safe for threads and processes; never raises for what its disk does."""

    def __init__(self, folder: Path, limit_bytes: int, claim_seconds: float) -> None:
        """A cache in `folder`, of at most `limit_bytes`; 0 keeps a few chunks in memory only."""
        self.folder = folder.expanduser()
        self.limit_bytes = limit_bytes
        self.claim_seconds = claim_seconds
        self._verified: dict[str, tuple[int, float]] = {}  # name: inode, when last touched
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._recent_lock = threading.Lock()
        self._store_from = 0.0 if limit_bytes else float("inf")
        if limit_bytes:
            try:
                for name in ("chunks", "claims"):
                    (self.folder / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._do_without(error)

    def read(self, name: str, length: int, start: int, stop: int) -> bytes | None:
        """Bytes `start` to `stop` of a chunk of `length` bytes, or None when it is not whole."""
        with self._recent_lock:
            if name in self._recent:
                self._recent.move_to_end(name)
                return self._recent[name][start:stop]
        if not self.limit_bytes:
            return None
        path = self.folder / "chunks" / name
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                inode, touched = self._verified.get(name, (-1, 0.0))
                if inode != status.st_ino:  # first use here: a power cut may have spoilt it
                    data = _pread(file.fileno(), length + CHECKSUM_BYTES + 1, 0)
                    chunk, checksum = data[:length], data[length:]
                    if checksum != _checksum(chunk):
                        path.unlink(missing_ok=True)
                        return None
                    touched = 0.0
                    block = chunk[start:stop]
                else:
                    block = _pread(file.fileno(), stop - start, start)
                now = time.monotonic()
                if now - touched > TOUCH_SECONDS:
                    with suppress(PermissionError):  # another user's cache can be read all the same
                        os.utime(file.fileno())
                    if len(self._verified) >= MAX_VERIFIED:
                        self._verified.clear()
                    self._verified[name] = (status.st_ino, now)
                return block if len(block) == stop - start else None
        except OSError:
            return None

    def store(self, name: str, chunk: bytes) -> None:
        """Keeps a chunk, evicting those not used for longest where the limit asks for it."""
        size = len(chunk) + CHECKSUM_BYTES
        if time.monotonic() >= self._store_from and size <= self.limit_bytes:
            try:
                with self._locked() as lock:
                    self._write(lock, name, chunk, size)
                return
            except OSError as error:
                self._do_without(error)
        with self._recent_lock:
            self._recent[name] = chunk
            if len(self._recent) > MAX_RECENT:
                self._recent.popitem(last=False)

    @contextmanager
    def claimed(self, names: list[str]) -> Iterator[None]:
        """Waits until nobody else fetches these chunks, then keeps others waiting.

        A claim saves a request and is not needed for correctness: it ends with its process, is
        not waited for longer than `claim_seconds`, and is let go where it cannot be had. `names`
        come in one order everywhere, so that two processes never wait for each other.
        """
        deadline = time.monotonic() + self.claim_seconds
        with ExitStack() as held:
            if self.limit_bytes:
                try:
                    for name in names:
                        path = self.folder / "claims" / name
                        file = held.enter_context(open(path, "ab", buffering=0))
                        if not _flock(file.fileno(), deadline):
                            break
                        held.callback(path.unlink, missing_ok=True)
                except OSError:
                    pass
            yield

    def used_bytes(self) -> int:
        """Bytes of all chunks, counted anew."""
        return sum(size for _, size, _ in self._entries())

    @contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _flock(handle, time.monotonic() + self.claim_seconds):
                raise TimeoutError(f"{self.folder / 'lock'}: held too long by another process")
            yield handle
        finally:
            os.close(handle)

    def _write(self, lock: int, name: str, chunk: bytes, size: int) -> None:
        path, aside = self.folder / "chunks" / name, self.folder / "aside"
        if path.exists():
            return
        text = os.pread(lock, 32, 0)
        used = int(text) if text.strip().isdigit() else self.used_bytes()
        if used + size > self.limit_bytes:
            used = self._evict(max(0, int(self.limit_bytes * KEPT_SHARE) - size))
        # Noted before it is true: a killed writer leaves the count too high, never too low.
        os.pwrite(lock, f"{used + size:<32}".encode(), 0)
        try:
            with open(aside, "wb", buffering=0) as file:
                for block in (chunk, _checksum(chunk)):
                    view = memoryview(block)
                    while view:
                        view = view[file.write(view) :]
                inode = os.fstat(file.fileno()).st_ino
            os.replace(aside, path)
            self._verified[name] = (inode, 0.0)  # by having written it
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def _evict(self, goal_bytes: int) -> int:
        """Removes chunks, least recently used first, down to `goal_bytes`; returns what is left."""
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        evicted = 0
        for _, size, path in entries:
            if used <= goal_bytes:
                break
            Path(path).unlink(missing_ok=True)
            used, evicted = used - size, evicted + 1
        count(evictions=evicted)
        self._drop_stale_claims()
        return used

    def _entries(self) -> list[tuple[int, int, str]]:
        """(last use, bytes, path) of each chunk."""
        entries = []
        with os.scandir(self.folder / "chunks") as found:
            for entry in found:
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                entries.append((status.st_mtime_ns, status.st_size, entry.path))
        return entries

    def _drop_stale_claims(self) -> None:
        """Removes what killed processes left. At worst a live claim goes, which costs a request."""
        with os.scandir(self.folder / "claims") as found:
            for entry in found:
                try:
                    if time.time() - entry.stat().st_mtime > STALE_CLAIM_SECONDS:
                        os.unlink(entry.path)
                except FileNotFoundError:
                    continue

    def _do_without(self, error: OSError) -> None:
        if not self._store_from:
            LOG.warning(
                f"{self.folder}: cannot keep chunks of remote shards ({error.strerror or error}); "
                "reading without this cache, which takes more requests: make room or set "
                "MLLM_CACHE to another disk"
            )
        self._store_from = time.monotonic() + STORE_AGAIN_SECONDS


def _checksum(chunk: bytes) -> bytes:
    return zlib.crc32(chunk).to_bytes(CHECKSUM_BYTES, "little")


def _pread(handle: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes; fewer only at the end of the file."""
    blocks = []
    while size > 0 and (block := os.pread(handle, size, offset)):
        blocks.append(block)
        offset, size = offset + len(block), size - len(block)
    return b"".join(blocks)


def _flock(handle: int, deadline: float) -> bool:
    """Takes a lock by asking again and again: flock itself knows no time limit."""
    wait = 0.001
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(wait)
            wait = min(wait * 2, 0.05)

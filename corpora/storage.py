"""Where shards lie: listing them and reading ranges of bytes, locally or remotely."""

import os
import re
import stat
from pathlib import Path
from typing import Protocol

from mllm.errors import UserError

# An explicit list: fsspec knows dozens more, some of which run commands or open chains of others.
# `memory` is a process's own memory, for tests.
SCHEMES = ("s3", "gs", "https", "http", "memory")
ALLOW_HTTP = "MLLM_ALLOW_HTTP"


class ShardFile(Protocol):
    """An open shard. Safe for threads; closes with its last reference."""

    size: int  # bytes
    stamp: int  # another one when the shard was written again: its time in ns, or from its ETag

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`.

        Raises:
            UserError: the shard ends before; it was cut since it was indexed.
            OSError: the disk or the network failed; trying again may help.
        """
        ...

    def expect(self, offset: int, size: int) -> None:
        """Says that these bytes will be read soon. A hint: it neither waits nor fails."""
        ...


def is_remote(corpus_dir: str | Path) -> bool:
    """Whether shards are read over a network: `corpus_dir` is a URL, not a folder.

    Raises:
        UserError: a URL that must not be used, so that asking is enough to be safe: a scheme off
            the list, a chain of schemes, a path that climbs, or credentials, which would travel
            from here into configs, logs and reports. The message never repeats credentials.
    """
    url = str(corpus_dir)
    if "://" not in url:
        return False
    scheme, _, rest = url.partition("://")
    first = re.split(r"\W", scheme)[0]  # of a chain; what follows may be anything
    where = f"{scheme}://{_without_credentials(rest)}" if scheme in SCHEMES else f"{first}:..."
    if scheme not in SCHEMES:
        raise UserError(
            f"{where}: shards are read from {', '.join(s + '://' for s in SCHEMES[:3])} or a "
            "plain folder, without chains of schemes"
        )
    if scheme == "http" and os.environ.get(ALLOW_HTTP) != "1":
        raise UserError(f"{where}: http is neither private nor signed; set {ALLOW_HTTP}=1 to allow")
    if where != url:
        raise UserError(
            f"{where}: a URL with a user, a password or a query would put credentials into logs; "
            "leave them to the environment (AWS_*, ~/.aws) or to $MLLM_STORAGE_OPTIONS"
        )
    if "://" in rest or "::" in rest or ".." in re.split(r"[/\\]", _without_braces(rest)):
        raise UserError(f"{where}: give one plain URL, without `::` and `..`")
    if not rest.strip("/") and scheme != "memory":
        raise UserError(f"{where}: names no bucket or host")
    return True


def list_shards(corpus_dir: str | Path) -> list[str]:
    """Names of the .tar files of a corpus, sorted. UserError when there are none.

    A URL may end in names with braces (`https://host/cc3m/{00000..00331}.tar`), which are then
    spelled out without asking the server; over http(s) that is the only way to list.
    """
    if is_remote(corpus_dir):
        from corpora.remote import list_remote_shards

        return list_remote_shards(str(corpus_dir))
    path = Path(corpus_dir)
    if not path.is_dir():
        raise UserError(f"{path}: no such corpus folder")
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".tar"))
    if not names:
        raise UserError(f"{path}: holds no .tar shard; give the folder that holds them")
    return names


def open_shard(corpus_dir: str | Path, name: str) -> ShardFile:
    """Opens one shard for reading ranges.

    Raises:
        UserError: a remote shard that is not there or may not be read; a folder or a pipe.
        OSError: it cannot be opened; for a remote shard, after all attempts.
    """
    if is_remote(corpus_dir):
        from corpora.remote import RemoteShard

        return RemoteShard(shard_label(corpus_dir, name))
    return LocalShard(Path(shard_label(corpus_dir, name)))


def shard_label(corpus_dir: str | Path, name: str) -> str:
    """Path or URL of a shard, fit for messages. UserError for a name that leaves the corpus."""
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise UserError(f"{corpus_dir}: {name!r} names no shard of this folder")
    if is_remote(corpus_dir):
        return f"{split_braces(str(corpus_dir))[0]}/{name}"
    return str(Path(corpus_dir) / name)


def split_braces(url: str) -> tuple[str, str]:
    """The folder of a corpus URL, and the names with braces that it ends in, or ""."""
    folder, _, last = url.rstrip("/").rpartition("/")
    return (folder, last) if "{" in last else (url.rstrip("/"), "")


def _without_credentials(rest: str) -> str:
    """What follows the scheme, less user, password, query and fragment."""
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return host.rpartition("@")[2] + slash + path


def _without_braces(rest: str) -> str:
    return re.sub(r"\{[^{}/]*\}", "", rest)


class LocalShard:
    """A shard on a mounted disk, read by `pread`, which keeps no position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for a writer
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a file; move it away")
        self.size, self.stamp = status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, offset: int, size: int) -> bytes:
        blocks = []
        while size > 0:
            try:
                block = os.pread(self._handle, size, offset)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            if not block:
                raise UserError(
                    f"{self.path}: ends before byte {offset + size:,}, which the index names; "
                    f"the shard was cut after indexing: write it again"
                )
            blocks.append(block)
            offset, size = offset + len(block), size - len(block)
        return b"".join(blocks)

    def expect(self, offset: int, size: int) -> None:
        if size:  # 0 would mean all that follows
            os.posix_fadvise(self._handle, offset, size, os.POSIX_FADV_WILLNEED)

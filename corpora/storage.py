"""Where shards lie: listing them and reading ranges of bytes, locally or remotely."""

import os
from pathlib import Path
from typing import Protocol

from mllm.errors import UserError


class ShardFile(Protocol):
    """An open shard. Safe for threads; closes with its last reference."""

    size: int  # bytes

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`.

        Raises:
            UserError: the shard ends before; it was cut since it was indexed.
            OSError: the disk or the network failed; trying again may help.
        """
        ...


def list_shards(corpus_dir: str | Path) -> list[str]:
    """Names of the .tar files of a corpus, sorted. UserError when there are none."""
    path = Path(corpus_dir)
    if not path.is_dir():
        raise UserError(f"{path}: no such corpus folder")
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".tar"))
    if not names:
        raise UserError(f"{path}: holds no .tar shard; give the folder that holds them")
    return names


def open_shard(corpus_dir: str | Path, name: str) -> ShardFile:
    """Opens one shard for reading ranges. OSError when it cannot be opened."""
    return LocalShard(Path(corpus_dir) / name)


class LocalShard:
    """A shard on a mounted disk, read by `pread`, which keeps no position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._handle).st_size

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, offset: int, size: int) -> bytes:
        blocks = []
        while size > 0:
            block = os.pread(self._handle, size, offset)
            if not block:
                raise UserError(
                    f"{self.path}: ends before byte {offset + size:,}, which the index names; "
                    f"the shard was cut after indexing: write it again"
                )
            blocks.append(block)
            offset, size = offset + len(block), size - len(block)
        return b"".join(blocks)

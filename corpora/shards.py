"""Writes documents as WebDataset tar shards that a plain webdataset reader understands."""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from corpora.document import Document, to_members
from corpora.index import build_index
from mllm.errors import UserError
from mllm.files import fsync_dir


class ShardSeries:
    """Writes documents into shards named by number; a `with` block closes the last of them.

    A shard is written aside, fsynced and renamed; if the block fails, its open shard is dropped.
    Equal documents give equal bytes (times are zero). No index is made.
    """

    def __init__(self, out_dir: str | Path, name: str, samples_per_shard: int) -> None:
        """Args:
        out_dir: an existing folder.
        name: a format for the shard's number, such as "shard-{:06d}.tar".
        samples_per_shard: a shard is closed when it holds as many.
        """
        self.out_dir = Path(out_dir)
        self.samples_per_shard = samples_per_shard
        self.num_samples = 0
        self.num_shards = 0
        self._name = name
        self._file: IO[bytes] | None = None
        self._tar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error_type is None:
            self._close_shard()
        else:
            self._drop_shard()

    def write(self, document: Document) -> None:
        """Appends one document. Its key must be new and without a dot, which ends keys in tars."""
        if "." in document.key.rpartition("/")[2]:
            raise ValueError(f"key {document.key!r} has a dot; webdataset would cut it there")
        members = to_members(document)
        try:
            if self._tar is None:
                self._open_shard()
            self._tar.write({"__key__": document.key, **members})
            self.num_samples += 1
            if self.num_samples % self.samples_per_shard == 0:
                self._close_shard()
        except BaseException:
            self._drop_shard()
            raise

    @property
    def _path(self) -> Path:
        return self.out_dir / self._name.format(self.num_shards)

    @property
    def _aside(self) -> Path:
        return self._path.with_name(f"{self._path.name}.tmp-{os.getpid()}")

    def _open_shard(self) -> None:
        from webdataset import TarWriter

        self._file = open(self._aside, "wb")  # noqa: SIM115  (closed by _close or _drop_shard)
        self._tar = TarWriter(self._file, encoder=False, mtime=0)

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._aside, self._path)
        fsync_dir(self.out_dir)
        self._file = self._tar = None
        self.num_shards += 1

    def _drop_shard(self) -> None:
        if self._file is None:
            return
        for part in (self._tar, self._file):
            with contextlib.suppress(OSError):  # a full disk fails here once more
                part.close()
        self._aside.unlink(missing_ok=True)
        self._file = self._tar = None


class ShardWriter(ShardSeries):
    """Writes `shard-000000.tar` ... and, when the `with` block ends well, their index.

        with ShardWriter(out_dir) as writer:
            writer.write(document)

    Without the index, which comes last, no reader takes the folder for a corpus.
    """

    def __init__(self, out_dir: str | Path, samples_per_shard: int = 1000) -> None:
        super().__init__(out_dir, "shard-{:06d}.tar", samples_per_shard)
        if self.out_dir.is_dir() and any(self.out_dir.glob("*.tar")):
            raise UserError(f"{self.out_dir}: holds shards already; give a new folder")
        self.out_dir.mkdir(parents=True, exist_ok=True)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(error_type, error, traceback)
        if error_type is not None:
            return
        if self.num_shards == 0:
            raise UserError(f"{self.out_dir}: no sample to write")
        build_index(self.out_dir)

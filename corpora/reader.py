"""Random access to the samples of a corpus through its index."""

import json
import os
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from corpora.document import Document, from_members
from corpora.index import VERSION, default_index_dir, shard_paths
from mllm.errors import UserError

MAX_OPEN_SHARDS = 128


class Corpus:
    """The samples of a folder of indexed shards, by number.

    Arrays are memory-mapped and samples are read by `pread`, so one object serves any number of
    threads, survives a fork, and pickles as its two paths.

    Attributes:
        fingerprint: 16 hex over keys and contents in order.
        text_bytes: int64 (N,), UTF-8 bytes of each sample's text.
        num_images: int32 (N,), pictures of each sample.
        image_sizes: int32 (sum of num_images, 2), (width, height) from the headers.
        index_dir: Where the index lies, and further sidecars may be written.
    """

    def __init__(self, corpus_dir: str | Path, index_dir: str | Path | None = None) -> None:
        """Opens a corpus. UserError when the index is missing or does not fit the shards."""
        self.corpus_dir = Path(corpus_dir)
        self.index_dir = default_index_dir(self.corpus_dir, index_dir)
        index = self._read_index()
        self.fingerprint: str = index["fingerprint"]
        self._extensions: list[str] = index["extensions"]
        self._shards = [shard["name"] for shard in index["shards"]]
        self._check_shards({shard["name"]: shard["size"] for shard in index["shards"]})
        arrays_dir = self.index_dir / index["arrays"]
        self._shard_ids = _map(arrays_dir, "shard_ids")
        self._member_starts = _map(arrays_dir, "member_starts")
        self._member_extensions = _map(arrays_dir, "member_extensions")
        self._member_offsets = _map(arrays_dir, "member_offsets")
        self._member_sizes = _map(arrays_dir, "member_sizes")
        self._key_starts = _map(arrays_dir, "key_starts")
        self._key_bytes = _map(arrays_dir, "key_bytes")
        self.text_bytes = _map(arrays_dir, "text_bytes")
        self.num_images = _map(arrays_dir, "num_images")
        self.image_sizes = _map(arrays_dir, "image_sizes")
        self.content_hashes = _map(arrays_dir, "content_hashes")
        self._files: OrderedDict[int, _ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._shard_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus, (self.corpus_dir, self.index_dir)

    def key(self, i: int) -> str:
        start, stop = self._key_starts[i], self._key_starts[i + 1]
        return self._key_bytes[start:stop].tobytes().decode()

    @cached_property
    def keys(self) -> list[str]:
        """All keys in order."""
        return [self.key(i) for i in range(len(self))]

    def shard_of(self, i: int) -> str:
        """File name of the shard that holds sample `i`."""
        return self._shards[self._shard_ids[i]]

    def members(self, i: int) -> dict[str, bytes]:
        """The members of sample `i` as they lie in the shard: extension to bytes.

        Raises:
            UserError: The shard has shrunk since it was indexed.
            OSError: The disk or the network failed; trying again may help.
        """
        run = slice(self._member_starts[i], self._member_starts[i + 1])
        offsets, sizes = self._member_offsets[run], self._member_sizes[run]
        # Members of a sample are neighbours in the tar: one read for all of them.
        begin, end = int(offsets.min()), int((offsets + sizes).max())
        block = self._file(int(self._shard_ids[i])).read(begin, end - begin)
        return {
            self._extensions[extension]: block[offset - begin : offset - begin + size]
            for extension, offset, size in zip(
                self._member_extensions[run].tolist(), offsets.tolist(), sizes.tolist(), strict=True
            )
        }

    def document(self, i: int) -> Document:
        """Reads sample `i`. BadSample when its content spells no document."""
        return from_members(self.key(i), self.members(i))

    def _file(self, shard_id: int) -> "_ShardFile":
        with self._lock:
            file = self._files.get(shard_id)
            if file is None:
                file = _ShardFile(self.corpus_dir / self._shards[shard_id])
                self._files[shard_id] = file
                if len(self._files) > MAX_OPEN_SHARDS:
                    # A thread still reading holds its own reference; the last one closes.
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(shard_id)
            return file

    def _read_index(self) -> dict[str, Any]:
        path = self.index_dir / "index.json"
        mend = f"run `mllm corpora index {self.corpus_dir}`"
        try:
            index = json.loads(path.read_bytes())
        except FileNotFoundError:
            shard_paths(self.corpus_dir)  # says so where there is no corpus at all
            raise UserError(f"{self.corpus_dir}: its shards have no index; {mend}") from None
        except ValueError:
            raise UserError(f"{path}: not JSON; {mend}") from None
        if index.get("version") != VERSION:
            raise UserError(f"{path}: index version {index.get('version')}, not {VERSION}; {mend}")
        return index

    def _check_shards(self, indexed: dict[str, int]) -> None:
        mend = f"run `mllm corpora index {self.corpus_dir}` (and `lint`) if that is meant"
        found = {path.name: path.stat().st_size for path in self.corpus_dir.glob("*.tar")}
        for name in sorted(found.keys() | indexed.keys()):
            path = self.corpus_dir / name
            if name not in found:
                raise UserError(f"{path}: the index names this shard but it is missing; {mend}")
            if name not in indexed:
                raise UserError(f"{path}: this shard is newer than the index; {mend}")
            if found[name] != indexed[name]:
                raise UserError(
                    f"{path}: {found[name]:,} bytes, but {indexed[name]:,} when indexed; {mend}"
                )


class _ShardFile:
    """An open shard that closes with its last reference."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; pread keeps no position, so threads need no lock."""
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


def _map(arrays_dir: Path, name: str) -> np.ndarray:
    path = arrays_dir / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        raise UserError(
            f"{path}: missing or cut; run `mllm corpora index {arrays_dir.parent.parent}`"
        ) from None

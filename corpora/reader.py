"""Random access to the samples of a corpus through its index."""

import itertools
import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from corpora.document import TEXT_EXTENSIONS, Document, from_members
from corpora.index import default_index_dir
from corpora.ragged import Ragged, load_array
from corpora.sidecar import VERSION, hash64, url_hash
from corpora.storage import ShardFile, is_remote, list_shards, open_shard, shard_label
from corpora.tar import TAR_BLOCK
from mllm.errors import UserError

MAX_OPEN_SHARDS = 128
SCAN = 1 << 20  # hashes compared at once by `find`

Places = dict[str, tuple[int, int]]  # extension to (offset, size) in bytes, in the shard's order


class Corpus:
    """The N samples of a folder (or URL) of indexed shards, by number.

    Arrays are memory-mapped and samples are read by `pread` (or range requests), so one object
    serves any number of threads, survives a fork, and pickles as its two paths. Opening reads the
    names of the shards and lists their folder, nothing more: a shard's size is compared with the
    index when it is first read.

    Attributes:
        fingerprint: 16 hex over keys and contents in order, whatever the sharding.
        text_bytes: uint32 (N,), UTF-8 bytes of each sample's text.
        num_images: uint16 (N,) (uint32 where a sample has more than 65,535 of something),
            pictures of each sample.
        image_sizes: uint16 (sum of num_images, 2), (width, height) from the headers.
        content_hashes: uint8 (N, 16), over a sample's extensions and bytes.
        num_bad_samples: Samples whose content spells no document.
        index_dir: Where the index lies, and further sidecars may be written.
    """

    def __init__(self, corpus_dir: str | Path, index_dir: str | Path | None = None) -> None:
        """Opens a corpus. UserError when the index is missing or does not fit the shards."""
        self.corpus_dir = str(corpus_dir) if is_remote(corpus_dir) else Path(corpus_dir)
        self.index_dir = default_index_dir(corpus_dir, index_dir)
        index = self._read_index()
        self.fingerprint: str = index["fingerprint"]
        self.num_bad_samples: int = index["num_bad_samples"]
        self._extensions: list[str] = index["extensions"]
        self._shards: list[str] = index["shards"]
        self._check_names()
        folder = self.index_dir / index["arrays"]
        # Lists of Python numbers: bisecting them costs a tenth of np.searchsorted on a scalar.
        self._shard_starts: list[int] = load_array(folder, "shard_starts").tolist()
        self._shard_sizes = load_array(folder, "shard_sizes")
        self._members = Ragged.load(folder, "members")
        self._member_extensions = load_array(folder, "member_extensions")
        self._member_blocks = load_array(folder, "member_blocks")
        self._member_sizes = load_array(folder, "member_sizes")
        self._keys = Ragged.load(folder, "keys")
        self._key_bytes = load_array(folder, "key_bytes")
        self.images = Ragged.load(folder, "images")
        self.image_sizes = load_array(folder, "image_sizes")
        self.text_bytes = load_array(folder, "text_bytes")
        self.content_hashes = load_array(folder, "content_hashes")
        self._key_hashes = load_array(folder, "key_hashes")
        self._url_hashes = load_array(folder, "url_hashes")
        self._forget_files()

    def __len__(self) -> int:
        return self._shard_starts[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus, (self.corpus_dir, self.index_dir)

    @property
    def num_images(self) -> np.ndarray:
        return self.images.counts

    @property
    def shards(self) -> list[str]:
        """File names of the shards in order."""
        return self._shards

    def key(self, i: int) -> str:
        start, stop = self._keys.span(i)
        return self._key_bytes[start:stop].tobytes().decode()

    @cached_property
    def keys(self) -> list[str]:
        """All keys in order."""
        return [self.key(i) for i in range(len(self))]

    def shard_of(self, i: int) -> str:
        """File name of the shard that holds sample `i`."""
        return self._shards[bisect_right(self._shard_starts, i) - 1]

    def url_hash(self, i: int) -> int:
        """64 bits of the sample's `url`, as `corpora.sidecar.url_hash` gives them; 0 without."""
        return int(self._url_hashes[i])

    def samples_of(self, shard: int) -> range:
        """Numbers of the samples of a shard, by its place in `shards`."""
        return range(self._shard_starts[shard], self._shard_starts[shard + 1])

    def members(self, i: int) -> dict[str, bytes]:
        """The members of sample `i` as they lie in the shard: extension to bytes.

        Raises:
            UserError: The shard is gone, or is not the one that was indexed.
            OSError: The disk or the network failed; trying again may help.
        """
        places = self._places(i)
        return self._read(i, places) if places else {}

    def document(self, i: int) -> Document:
        """Reads sample `i`. BadSample when its content spells no document."""
        return from_members(self.key(i), self.members(i))

    def text_document(self, i: int) -> Document:
        """As `document`, but no picture is read: the data of its image segments is empty.

        Raises just what `document` raises for the same sample, which no picture's bytes decide.
        """
        places = self._places(i)
        members = dict.fromkeys(places, b"")
        for run in _text_runs(places):
            members |= self._read(i, run)
        return from_members(self.key(i), members)

    def expect_texts(self, samples: Iterable[int]) -> None:
        """Has a local disk fetch the texts of some hundred samples, ahead of `text_document`.

        They lie apart, so the kernel's own reading ahead does not help: each would be waited for.
        """
        for i in samples:
            for run in _text_runs(self._places(i)):
                first, size = _extent(run)
                self._file_of(i).expect(first, size)

    def find(
        self,
        keys: Iterable[str] = (),
        urls: Iterable[str] = (),
        hashes: Iterable[str] = (),
    ) -> np.ndarray:
        """Numbers of the samples with one of these keys, URLs (`url` of their JSON) or contents.

        Scans hashes of the index, a block at a time; no sample is read. Keys and contents are
        then compared whole; of two URLs, one in 10^19 is taken for another.

        Args:
            keys: As `key` spells them.
            urls: Exactly as in the JSON members.
            hashes: 32 hex each, as in `content_hashes`.

        Returns:
            int64, ascending, each once.
        """
        keys, contents = set(keys), {_content(value) for value in hashes}
        by_key = _positions(self._key_hashes, [hash64(key.encode()) for key in keys])
        by_url = _positions(self._url_hashes, [url_hash(url) for url in urls])
        by_content = _positions(
            self.content_hashes.view(np.uint64)[:, 0],
            [int.from_bytes(content[:8], "little") for content in contents],
        )
        found = [i for i in by_key if self.key(i) in keys]
        found += [i for i in by_content if self.content_hashes[i].tobytes() in contents]
        return np.unique(np.array([*found, *by_url], np.int64))

    def _places(self, i: int) -> Places:
        start, stop = self._members.span(i)
        extensions = self._member_extensions[start:stop].tolist()
        blocks = self._member_blocks[start:stop].tolist()
        sizes = self._member_sizes[start:stop].tolist()
        return {
            self._extensions[extension]: (block * TAR_BLOCK, size)
            for extension, block, size in zip(extensions, blocks, sizes, strict=True)
        }

    def _read(self, i: int, places: Places) -> dict[str, bytes]:
        """The members at `places`, one or more neighbours in the tar: one read for all of them."""
        first, length = _extent(places)
        data = self._file_of(i).read(first, length)
        return {
            extension: data[offset - first : offset - first + size]
            for extension, (offset, size) in places.items()
        }

    def _file_of(self, i: int) -> ShardFile:
        return self._file(bisect_right(self._shard_starts, i) - 1)

    def _file(self, shard: int) -> ShardFile:
        if self._pid != os.getpid():
            self._forget_files()  # a lock held, or a connection used, at the fork
        with self._lock:
            file = self._files.get(shard)
            if file is not None:
                self._files.move_to_end(shard)
                return file
        file = self._open(shard)
        with self._lock:
            file = self._files.setdefault(shard, file)
            while len(self._files) > MAX_OPEN_SHARDS:
                # A thread still reading holds its own reference; the last one closes.
                self._files.popitem(last=False)
            return file

    def _open(self, shard: int) -> ShardFile:
        name, indexed = self._shards[shard], int(self._shard_sizes[shard])
        try:
            file = open_shard(self.corpus_dir, name)
        except FileNotFoundError:
            raise self._missing(name) from None
        if file.size != indexed:
            raise UserError(
                f"{shard_label(self.corpus_dir, name)}: {file.size:,} bytes, but {indexed:,} when "
                f"indexed; {self._mend()} (and `lint`) if that is meant"
            )
        return file

    def _forget_files(self) -> None:
        self._pid = os.getpid()
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def _read_index(self) -> dict[str, Any]:
        path = self.index_dir / "index.json"
        try:
            index = json.loads(path.read_bytes())
        except FileNotFoundError:
            list_shards(self.corpus_dir)  # says so where there is no corpus at all
            raise UserError(
                f"{self.corpus_dir}: its shards have no index; {self._mend()}"
            ) from None
        except ValueError:
            raise UserError(f"{path}: not JSON; {self._mend()}") from None
        if index.get("version") != VERSION:
            raise UserError(
                f"{path}: index version {index.get('version')}, not {VERSION}; {self._mend()}"
            )
        return index

    def _check_names(self) -> None:
        """Compares the names of the index with one listing of the folder."""
        if is_remote(self.corpus_dir):
            return  # a listing is a request per thousand shards, and https servers have none
        found = set(list_shards(self.corpus_dir))
        if found == set(self._shards):
            return
        name = min(found ^ set(self._shards))
        if name not in found:
            raise self._missing(name)
        raise UserError(
            f"{shard_label(self.corpus_dir, name)}: this shard is newer than the index; "
            f"{self._mend()} (and `lint`) if that is meant"
        )

    def _missing(self, name: str) -> UserError:
        return UserError(
            f"{shard_label(self.corpus_dir, name)}: the index names this shard but it is missing; "
            f"{self._mend()} (and `lint`) if that is meant"
        )

    def _mend(self) -> str:
        return f"run `mllm corpora index {self.corpus_dir}`"


def _text_runs(places: Places) -> list[Places]:
    """The members that hold text, neighbours together."""
    runs = itertools.groupby(places.items(), key=lambda place: place[0] in TEXT_EXTENSIONS)
    return [dict(run) for holds_text, run in runs if holds_text]


def _extent(run: Places) -> tuple[int, int]:
    """(offset, bytes) from the first of some neighbours to the end of the last."""
    spans = list(run.values())
    return spans[0][0], sum(spans[-1]) - spans[0][0]


def _content(value: str) -> bytes:
    try:
        content = bytes.fromhex(value)
    except ValueError:
        content = b""
    if len(content) != 16:
        raise UserError(f"{value!r}: not a content hash; it has 32 hexadecimal digits")
    return content


def _positions(hashes: np.ndarray, wanted: list[int]) -> list[int]:
    """Where `hashes`, uint64 (N,), has one of `wanted`; holds SCAN of them at a time."""
    if not wanted:
        return []
    values = np.array(wanted, np.uint64)
    parts = [
        first + np.flatnonzero(np.isin(hashes[first : first + SCAN], values))
        for first in range(0, len(hashes), SCAN)
    ]
    return np.concatenate(parts).tolist() if parts else []

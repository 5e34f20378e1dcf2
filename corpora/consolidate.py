"""All sidecars of a corpus as a few flat arrays that a reader memory-maps.

N samples in S shards with M members and K images, about 80 bytes for each image-text pair:

    shard_starts       int64 (S + 1,)   the first sample of each shard
    shard_sizes        int64 (S,)       bytes
    members            Ragged (N,)      each sample's run of
    member_extensions  uint8/16/32 (M,)   an index into index.json `extensions`
    member_blocks      uint32 (M,)        offset in blocks of 512 bytes
    member_sizes       uint32 (M,)        bytes
    keys               Ragged (N,)      each sample's run of
    key_bytes          uint8              UTF-8
    images             Ragged (N,)      each sample's run of
    image_sizes        uint16 (K, 2)      (width, height)
    text_bytes         uint32 (N,)
    content_hashes     uint8 (N, 16)
    key_hashes         uint64 (N,)      for takedown lists and duplicates
    url_hashes         uint64 (N,)      of `url` in a sample's JSON; 0 for none

Consolidation reads one sidecar at a time: its memory does not grow with the corpus.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from corpora.ragged import BLOCK
from corpora.sidecar import VERSION, ShardSummary, Sidecar
from mllm.files import fsync_dir, name_full_disk, write_aside

# Name, dtype, further axes, and a sidecar's part of it.
FLAT: tuple[tuple[str, DTypeLike, tuple[int, ...], Callable[[Sidecar], np.ndarray]], ...] = (
    ("member_blocks", np.uint32, (), lambda shard: shard.members["block"]),
    ("member_sizes", np.uint32, (), lambda shard: shard.members["size"]),
    ("key_bytes", np.uint8, (), lambda shard: shard.key_bytes),
    ("image_sizes", np.uint16, (2,), lambda shard: shard.image_sizes),
    ("text_bytes", np.uint32, (), lambda shard: shard.samples["text_bytes"]),
    ("content_hashes", np.uint8, (16,), lambda shard: _bytes_of(shard.samples["content_hash"])),
    ("key_hashes", np.uint64, (), lambda shard: shard.samples["key_hash"]),
    ("url_hashes", np.uint64, (), lambda shard: shard.samples["url_hash"]),
)
# Name of the runs, and the field that counts them.
RAGGED = (("members", "num_members"), ("keys", "num_key_bytes"), ("images", "num_images"))

# What the corpus fingerprint covers: keys and contents in order, whatever the sharding.
CONTENT = ("keys_counts", "key_bytes", "content_hashes")


def consolidate(
    sidecars: Iterable[Sidecar], summaries: Sequence[ShardSummary], index_dir: Path
) -> None:
    """Writes all sidecars as arrays in a new folder, then points index.json at it.

    Args:
        sidecars: One for each of `summaries`, in order; each is read once and let go.
        summaries: Of every shard of the corpus.
        index_dir: Its index stands as it was if this fails.
    """
    aside = index_dir / f"arrays.tmp-{os.getpid()}"
    aside.mkdir(parents=True, exist_ok=True)
    try:
        extensions = sorted({name for summary in summaries for name in summary.extensions})
        digests = _write_arrays(sidecars, summaries, extensions, aside)
        name = f"arrays-{_combined(digests, sorted(digests))}"
        if _sizes(index_dir / name) != _sizes(aside):  # absent, or a file of it was lost or cut
            shutil.rmtree(index_dir / name, ignore_errors=True)
            fsync_dir(aside)
            aside.rename(index_dir / name)
            fsync_dir(index_dir)
    except OSError as error:
        name_full_disk(error, aside)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    index = {
        "version": VERSION,
        "arrays": name,
        "fingerprint": _combined(digests, CONTENT),
        "num_samples": sum(summary.num_samples for summary in summaries),
        "num_bad_samples": sum(summary.num_bad_samples for summary in summaries),
        "extensions": extensions,
        "shards": [summary.name for summary in summaries],
    }
    with write_aside(index_dir / "index.json") as file:
        json.dump(index, file, indent=1)
    for old in index_dir.glob("arrays-*"):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)


def _write_arrays(
    sidecars: Iterable[Sidecar],
    summaries: Sequence[ShardSummary],
    extensions: list[str],
    folder: Path,
) -> dict[str, str]:
    """Writes every array into `folder`; a digest of each, by name."""
    wide = max((summary.most_of_a_sample for summary in summaries), default=0) > 65535
    id_type = np.min_scalar_type(len(extensions))
    numbers = {name: number for number, name in enumerate(extensions)}
    files = {name: _ArrayFile(folder, name, kind, axes) for name, kind, axes, _ in FLAT}
    files["member_extensions"] = _ArrayFile(folder, "member_extensions", id_type)
    for name, _ in RAGGED:
        count = _ArrayFile(folder, f"{name}_counts", np.uint32 if wide else np.uint16)
        files[f"{name}_counts"] = count
        files[f"{name}_blocks"] = _ArrayFile(folder, f"{name}_blocks", np.int64)
    blocks = {name: _BlockStarts(files[f"{name}_blocks"]) for name, _ in RAGGED}
    files["shard_starts"] = _ArrayFile(folder, "shard_starts", np.int64)
    files["shard_sizes"] = _ArrayFile(folder, "shard_sizes", np.int64)
    try:
        for sidecar in sidecars:
            for name, _, _, part in FLAT:
                files[name].append(part(sidecar))
            own = np.array([numbers[e] for e in sidecar.summary.extensions], id_type)
            files["member_extensions"].append(own[sidecar.members["extension"]])
            for name, field in RAGGED:
                files[f"{name}_counts"].append(sidecar.samples[field])
                blocks[name].append(sidecar.samples[field])
        for starts in blocks.values():
            starts.close()
        num_samples = [summary.num_samples for summary in summaries]
        files["shard_starts"].append(np.cumsum([0, *num_samples]))
        files["shard_sizes"].append(np.array([summary.size for summary in summaries]))
    finally:
        for file in files.values():
            file.close()
    return {name: file.digest for name, file in files.items()}


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file; none where there is no folder."""
    return {path.name: path.stat().st_size for path in folder.glob("*")}


def _combined(digests: dict[str, str], names: Sequence[str]) -> str:
    """16 hex over the digests of some arrays."""
    lines = "".join(f"{name} {digests[name]}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _bytes_of(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, hashes.itemsize)


class _ArrayFile:
    """A .npy file that grows along its first axis and is hashed as it grows."""

    def __init__(
        self, folder: Path, name: str, dtype: DTypeLike, axes: tuple[int, ...] = ()
    ) -> None:
        self._dtype, self._axes, self._length = np.dtype(dtype), axes, 0
        self._hash = hashlib.sha256()
        self._file = open(folder / f"{name}.npy", "wb")  # noqa: SIM115  (closed by close)
        self._write_header()
        self._start = self._file.tell()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def append(self, part: np.ndarray) -> None:
        """`part` (n, *axes), of any integer type whose values fit."""
        data = part.astype(self._dtype, copy=False).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._length += len(part)

    def close(self) -> None:
        """Writes the length into the header, for which numpy leaves room, and syncs."""
        with self._file:
            self._file.seek(0)
            self._write_header()
            assert self._file.tell() == self._start
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self) -> None:
        shape = (self._length, *self._axes)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


class _BlockStarts:
    """Where each block of runs starts (see corpora/ragged.py), from counts that come in parts."""

    def __init__(self, file: _ArrayFile) -> None:
        self._file, self._total, self._runs = file, 0, 0

    def append(self, counts: np.ndarray) -> None:
        first = -self._runs % BLOCK  # the part's first run that opens a block
        before = np.cumsum(counts, dtype=np.int64) - counts
        self._file.append(self._total + before[first::BLOCK])
        self._total += int(counts.sum(dtype=np.int64))
        self._runs += len(counts)

    def close(self) -> None:
        self._file.append(np.array([self._total]))

"""Indexes: where each sample of each shard lies, so that reading is random access.

    INDEX_DIR/shard-000000.tar.json      a sidecar per shard: members, sizes, lengths, hashes
    INDEX_DIR/arrays-FINGERPRINT/*.npy   all sidecars consolidated, memory-mapped by the reader
    INDEX_DIR/index.json                 names the arrays and the shards; written last

INDEX_DIR is `CORPUS_DIR/index` unless shards are read-only and another is given. A sidecar is
reused while its shard keeps size and modification time, so re-indexing reads only what changed.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpora.document import from_members
from mllm.command import progress
from mllm.errors import BadSample, UserError
from mllm.files import fsync_dir, write_aside

VERSION = 1
TAR_BLOCK = 512


@dataclass(frozen=True)
class SampleEntry:
    """What an index knows of one sample."""

    key: str
    members: list[tuple[str, int, int]]  # (extension, offset in the shard, size), in bytes
    text_bytes: int
    image_sizes: list[tuple[int, int]]  # (width, height); (0, 0) where the header is unreadable
    content_hash: str  # 32 hex over extensions and bytes; not over the key
    problem: str | None  # why the sample will be masked, if its content spells no document


def default_index_dir(corpus_dir: Path, index_dir: str | Path | None) -> Path:
    return Path(index_dir) if index_dir is not None else corpus_dir / "index"


def shard_paths(corpus_dir: Path) -> list[Path]:
    """The shards of a corpus in order. UserError when there are none."""
    if not corpus_dir.is_dir():
        raise UserError(f"{corpus_dir}: no such corpus folder")
    paths = sorted(corpus_dir.glob("*.tar"))
    if not paths:
        raise UserError(f"{corpus_dir}: holds no .tar shard; give the folder that holds them")
    return paths


def build_index(corpus_dir: str | Path, index_dir: str | Path | None = None) -> list[str]:
    """Indexes every shard of a corpus and consolidates; returns the problems of bad samples.

    Raises:
        UserError: A shard is truncated or no plain tar file. The index stands as it was.
    """
    corpus_dir = Path(corpus_dir)
    index_dir = default_index_dir(corpus_dir, index_dir)
    paths = shard_paths(corpus_dir)
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
        sidecars = [_sidecar(path, index_dir) for path in progress(paths, "indexing shards")]
        _consolidate(sidecars, index_dir)
    except PermissionError as error:
        raise UserError(f"{error.filename}: not writable; name another with --index-dir") from None
    samples = (sample for sidecar in sidecars for sample in sidecar["samples"])
    return [sample["problem"] for sample in samples if sample["problem"]]


def read_members(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yields (key, {extension: (offset, size)}) for each sample of a shard, in order.

    Consecutive members that share everything before the first dot of the file name are one
    sample, as webdataset has it. Folders and links are passed over.

    Raises:
        UserError: The shard is truncated, compressed or no tar file.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            key: str | None = None
            members: dict[str, tuple[int, int]] = {}
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if not member.isreg() or not stem or not dot:
                    continue
                if folder + slash + stem != key or extension.lower() in members:
                    if key is not None:
                        yield key, members
                    key, members = folder + slash + stem, {}
                members[extension.lower()] = (member.offset_data, member.size)
            if key is not None:
                yield key, members
            end = tar.offset
    except tarfile.TarError as error:
        raise _broken(path, str(error)) from None
    # tarfile takes a file cut between two members for whole; the closing zero block tells.
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            raise _broken(path, "no end-of-archive block")


def index_shard(path: Path) -> list[SampleEntry]:
    """Reads a whole shard and describes its samples."""
    entries = []
    with open(path, "rb") as file:
        for key, places in read_members(path):
            members = {}
            for extension, (offset, size) in places.items():
                file.seek(offset)
                members[extension] = file.read(size)
            entries.append(_entry(key, places, members))
    return entries


def content_hash(members: dict[str, bytes]) -> str:
    """32 hex over the members of a sample, whatever its key and their order."""
    digest = hashlib.sha256()
    for extension in sorted(members):
        digest.update(f"{extension} {len(members[extension])}\n".encode())
        digest.update(members[extension])
    return digest.hexdigest()[:32]


def _entry(key: str, places: dict[str, tuple[int, int]], members: dict[str, bytes]) -> SampleEntry:
    text_bytes, image_sizes, problem = 0, [], None
    try:
        document = from_members(key, members)
        text_bytes = document.text_bytes
        image_sizes = [_image_size(data) for data in document.images]
    except BadSample as error:
        problem = str(error)
    return SampleEntry(
        key=key,
        members=[(extension, *place) for extension, place in places.items()],
        text_bytes=text_bytes,
        image_sizes=image_sizes,
        content_hash=content_hash(members),
        problem=problem,
    )


def _image_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone; (0, 0) leaves the verdict to decoding."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP")) as image:
            return image.size
    except Exception:  # PIL raises many kinds on broken headers; none is worth stopping for here
        return (0, 0)


def _sidecar(path: Path, index_dir: Path) -> dict[str, Any]:
    """The sidecar of a shard, from disk while the shard is unchanged."""
    status = path.stat()
    sidecar_path = index_dir / f"{path.name}.json"
    stamp = {"version": VERSION, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    try:
        known = json.loads(sidecar_path.read_bytes())
        if {name: known[name] for name in stamp} == stamp:
            return known
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    samples = [vars(entry) for entry in index_shard(path)]
    sidecar = {"shard": path.name, **stamp, "samples": samples}
    with write_aside(sidecar_path) as file:
        file.write(json.dumps(sidecar, ensure_ascii=False, separators=(",", ":")))
    return sidecar


def _consolidate(sidecars: list[dict[str, Any]], index_dir: Path) -> None:
    """Writes all sidecars as arrays in a new folder, then points index.json at it."""
    samples = [sample for sidecar in sidecars for sample in sidecar["samples"]]
    members = [member for sample in samples for member in sample["members"]]
    extensions = sorted({extension for extension, _, _ in members})
    extension_ids = {extension: number for number, extension in enumerate(extensions)}
    keys = [sample["key"].encode() for sample in samples]
    num_samples = [len(sidecar["samples"]) for sidecar in sidecars]
    arrays = {
        "shard_ids": np.repeat(np.arange(len(sidecars), dtype=np.int32), num_samples),
        "member_starts": _starts(len(sample["members"]) for sample in samples),
        "member_extensions": np.array([extension_ids[m[0]] for m in members], np.int32),
        "member_offsets": np.array([m[1] for m in members], np.int64),
        "member_sizes": np.array([m[2] for m in members], np.int64),
        "key_starts": _starts(len(key) for key in keys),
        "key_bytes": np.frombuffer(b"".join(keys), np.uint8),
        "text_bytes": np.array([sample["text_bytes"] for sample in samples], np.int64),
        "num_images": np.array([len(sample["image_sizes"]) for sample in samples], np.int32),
        "image_sizes": np.array(
            [size for sample in samples for size in sample["image_sizes"]], np.int32
        ).reshape(-1, 2),
        "content_hashes": np.frombuffer(
            bytes.fromhex("".join(sample["content_hash"] for sample in samples)), np.uint8
        ).reshape(-1, 16),
    }
    name = f"arrays-{_digest(arrays)}"
    if not (index_dir / name).is_dir():
        _write_arrays(arrays, index_dir, name)
    index = {
        "version": VERSION,
        "arrays": name,
        "fingerprint": _corpus_fingerprint(arrays),
        "num_samples": len(samples),
        "num_bad_samples": sum(sample["problem"] is not None for sample in samples),
        "extensions": extensions,
        "shards": [{"name": s["shard"], "size": s["size"]} for s in sidecars],
    }
    with write_aside(index_dir / "index.json") as file:
        json.dump(index, file, indent=1)
    for old in index_dir.glob("arrays-*"):
        if old.name != name:
            shutil.rmtree(old)


def _starts(counts: Iterable[int]) -> np.ndarray:
    """int64 (N + 1,): where each sample's run begins in a flat array."""
    counts = list(counts)
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()[:16]


def _corpus_fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """16 hex over keys and content hashes in order: equal samples, whatever the sharding."""
    names = ("key_starts", "key_bytes", "content_hashes")
    return _digest({name: arrays[name] for name in names})


def _write_arrays(arrays: dict[str, np.ndarray], index_dir: Path, name: str) -> None:
    aside = index_dir / f"{name}.tmp-{os.getpid()}"
    aside.mkdir(exist_ok=True)
    try:
        for array_name, array in arrays.items():
            with open(aside / f"{array_name}.npy", "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        fsync_dir(aside)
        aside.rename(index_dir / name)
        fsync_dir(index_dir)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _broken(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: not a whole tar shard ({reason}); fetch or write it again, or move it away, "
        f"then run `mllm corpora index {path.parent}`"
    )

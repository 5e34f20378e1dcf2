"""What an index knows of one shard: its samples as small arrays, kept in a file per shard.

    INDEX_DIR/shards/shard-000000.tar.npz

A sidecar is used again while its shard keeps size and modification time (remote shards: size and
ETag), so indexing anew reads only what changed, and an interrupted indexing goes on where it
stopped.
"""

import errno
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from corpora.document import Document, from_members
from corpora.picture_size import picture_size
from corpora.storage import ShardFile, is_remote, open_shard, shard_label
from corpora.tar import READ_BYTES, REMOTE_READ_BYTES, TAR_BLOCK, BrokenTar, TarSample, read_samples
from mllm.errors import BadSample, UserError
from mllm.files import write_aside

VERSION = 2
PROBLEMS = 20  # of a shard, kept word for word; the rest is counted

SAMPLE = np.dtype(
    [
        ("num_members", "<u4"),
        ("num_key_bytes", "<u4"),
        ("num_images", "<u4"),
        ("text_bytes", "<u4"),
        ("content_hash", "V16"),
        ("key_hash", "<u8"),
        ("url_hash", "<u8"),
    ]
)
# Offsets in blocks of 512 bytes, to which tar aligns data; extensions index the shard's own list.
MEMBER = np.dtype([("extension", "<u4"), ("block", "<u4"), ("size", "<u4")])


@dataclass(frozen=True)
class ShardSummary:
    """What is known of a shard without reading its arrays."""

    name: str
    size: int  # bytes of the tar
    mtime_ns: int  # or the stamp of a remote shard
    num_samples: int
    num_bad_samples: int
    num_members: int
    num_key_bytes: int
    num_images: int
    most_of_a_sample: int  # members, key bytes or images; decides the width of counts
    extensions: list[str]
    problems: list[str]  # why samples will be masked; the first PROBLEMS


@dataclass(frozen=True)
class Sidecar:
    """A shard's N samples with M members and K images."""

    summary: ShardSummary
    samples: np.ndarray  # SAMPLE (N,)
    members: np.ndarray  # MEMBER (M,)
    key_bytes: np.ndarray  # uint8, all keys in UTF-8, end to end
    image_sizes: np.ndarray  # uint16 (K, 2), (width, height); larger sides stand as 65,535

    @cached_property
    def keys(self) -> list[str]:
        stops = np.cumsum(self.samples["num_key_bytes"], dtype=np.int64).tolist()
        data = self.key_bytes.tobytes()
        return [
            data[start:stop].decode() for start, stop in zip([0, *stops[:-1]], stops, strict=True)
        ]


class ShardDescriber:
    """Collects a shard's samples into a sidecar.

    for sample in read_samples(file):
        describer.add(sample, spell(sample))
    sidecar = describer.sidecar()
    """

    def __init__(self, name: str, size: int, mtime_ns: int) -> None:
        self._stamp = (name, size, mtime_ns)
        self._samples: list[tuple[Any, ...]] = []
        self._members: list[tuple[int, int, int]] = []
        self._keys: list[bytes] = []
        self._image_sizes: list[tuple[int, int]] = []
        self._extensions: dict[str, int] = {}
        self._num_bad, self._problems = 0, list[str]()

    def add(self, sample: TarSample, document: Document | BadSample) -> None:
        """Describes one more sample, given what `spell` made of it."""
        problems = list(sample.faults)
        if isinstance(document, BadSample):
            problems.append(str(document))
            self._num_bad += 1
        self._problems += problems[: PROBLEMS - len(self._problems)]
        key = sample.key.encode()
        images: tuple[bytes, ...] = ()
        text_bytes, url = 0, None
        if isinstance(document, Document):
            images, text_bytes = document.images, document.text_bytes
            url = document.meta.get("url")
        self._samples.append(
            (
                len(sample.places),
                len(key),
                len(images),
                min(text_bytes, (1 << 32) - 1),
                content_hash(sample.members),
                hash64(key),
                url_hash(url) if isinstance(url, str) else 0,
            )
        )
        self._keys.append(key)
        for data in images:
            width, height = picture_size(data)
            self._image_sizes.append((min(width, 65535), min(height, 65535)))
        for extension, (offset, size) in sample.places.items():
            number = self._extensions.setdefault(extension, len(self._extensions))
            self._members.append((number, offset // TAR_BLOCK, size))

    def sidecar(self) -> Sidecar:
        samples = np.array(self._samples, SAMPLE)
        counts = ("num_members", "num_key_bytes", "num_images")
        summary = ShardSummary(
            *self._stamp,
            num_samples=len(samples),
            num_bad_samples=self._num_bad,
            num_members=len(self._members),
            num_key_bytes=sum(map(len, self._keys)),
            num_images=len(self._image_sizes),
            most_of_a_sample=max(int(samples[name].max(initial=0)) for name in counts),
            extensions=list(self._extensions),
            problems=self._problems,
        )
        return Sidecar(
            summary,
            samples,
            np.array(self._members, MEMBER),
            np.frombuffer(b"".join(self._keys), np.uint8),
            np.array(self._image_sizes, np.uint16).reshape(-1, 2),
        )


def spell(sample: TarSample) -> Document | BadSample:
    """The document that a sample spells, or why it spells none."""
    try:
        return from_members(sample.key, sample.members)
    except BadSample as error:
        return error


def index_shard(corpus_dir: str | Path, name: str) -> Sidecar:
    """Reads a whole shard and describes its samples. UserError when it is no whole tar."""
    file, mtime_ns = open_stamped(corpus_dir, name)
    describer = ShardDescriber(name, file.size, mtime_ns)
    try:
        for sample in read_samples(file, read_size(corpus_dir)):
            describer.add(sample, spell(sample))
    except BrokenTar as error:
        raise UserError(
            f"{shard_label(corpus_dir, name)}: not a whole tar shard ({error}); fetch or write it "
            f"again, or move it away, then run `mllm corpora index {corpus_dir}`"
        ) from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise UserError(
            f"{shard_label(corpus_dir, name)}: cannot be read ({error.strerror}); mend the disk or "
            "the mount and run again, what is indexed is kept"
        ) from None
    return describer.sidecar()


def open_stamped(corpus_dir: str | Path, name: str) -> tuple[ShardFile, int]:
    """An open shard and its stamp: modification time in ns, of a remote one a sum of its ETag.

    UserError where its name leads to no file.
    """
    try:
        file = open_shard(corpus_dir, name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        raise UserError(
            f"{shard_label(corpus_dir, name)}: gone, or a link that leads nowhere; bring it back "
            "or move it away"
        ) from None
    return file, file.stamp


def read_size(corpus_dir: str | Path) -> int:
    """Bytes of one read when a shard is read from front to back."""
    return REMOTE_READ_BYTES if is_remote(corpus_dir) else READ_BYTES


def sidecar_path(index_dir: Path, name: str) -> Path:
    return index_dir / "shards" / f"{name}.npz"


def write_sidecar(sidecar: Sidecar, path: Path) -> None:
    header = json.dumps({"version": VERSION, **vars(sidecar.summary)}).encode()
    with write_aside(path, "wb") as file:
        np.savez(
            file,
            header=np.frombuffer(header, np.uint8),
            samples=sidecar.samples,
            members=sidecar.members,
            key_bytes=sidecar.key_bytes,
            image_sizes=sidecar.image_sizes,
        )


def read_summary(path: Path) -> ShardSummary | None:
    """The summary of a sidecar; None where it is absent, cut or of another version."""
    try:
        with np.load(path) as arrays:
            header = json.loads(arrays["header"].tobytes())
        if header.pop("version") != VERSION:
            return None
        return ShardSummary(**header)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def read_sidecar(path: Path, summary: ShardSummary) -> Sidecar:
    """Raises: UserError: the file is cut or gone."""
    try:
        with np.load(path) as arrays:
            names = ("samples", "members", "key_bytes", "image_sizes")
            return Sidecar(summary, *(arrays[name] for name in names))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cut ({error}); remove it and index again") from None


def content_hash(members: Mapping[str, bytes]) -> bytes:
    """16 bytes over the members of a sample, whatever its key and their order."""
    digest = hashlib.sha256()
    for extension in sorted(members):
        digest.update(f"{extension} {len(members[extension])}\n".encode())
        digest.update(members[extension])
    return digest.digest()[:16]


def hash64(value: bytes) -> int:
    """64 bits of a key or URL; never 0, which means none."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little") or 1


def url_hash(url: str) -> int:
    """64 bits of a URL, which in a JSON member may hold what UTF-8 cannot spell."""
    return hash64(url.encode("utf-8", "surrogatepass"))

"""One pass over a unit's records that writes what later stages compare.

WORK/ids/UNIT.txt           a record's id a line, as JSON
WORK/images/UNIT.npy        int32 (records,): images of each record
WORK/tables/TABLE/UNIT.bin  entries sorted by key: see `pairs.ENTRY`
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Record
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from corpora.pipeline.pairs import ENTRY, NearTable, Table, table_path
from corpora.pipeline.picture_hash import COLOURS, looks
from corpora.pipeline.record import LAYOUT
from mllm.files import write_aside

_PACK = struct.Struct(
    f"<QQ{COLOURS}sI"
)  # an ENTRY whose key is 16 bytes of digest, or the hash twice


class Fingerprints(PipelineStep):
    """Writes the fingerprints of each record and passes it on unchanged."""

    type = "DEDUP"
    name = "fingerprints"

    def __init__(self, exact: str, image_hash: str, tables: list[Table], work_dir: Path) -> None:
        super().__init__()
        self.exact = exact
        self.image_hash = image_hash
        self.tables = tables
        self.work_dir = work_dir

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # type: ignore[override]
        names = {table.name for table in self.tables}
        has_looks = any(isinstance(table, NearTable) for table in self.tables)
        exact, image_bytes, image_looks = bytearray(), bytearray(), bytearray()
        image_counts: list[int] = []
        num_images = 0
        with write_aside(self.work_dir / "ids" / f"{rank:06d}.txt") as ids:
            for number, record in enumerate(data or ()):
                ids.write(json.dumps(record.id) + "\n")
                if self.exact != "off" and (digest := content_digest(record, self.exact)):
                    exact += _digest_entry(digest, number)
                for media in record.media:
                    encoded = media.media_bytes or b""
                    if "image_bytes" in names:
                        digest = hashlib.blake2b(encoded, digest_size=16).digest()
                        image_bytes += _digest_entry(digest, num_images)
                    if has_looks and (seen := looks(encoded, self.image_hash)):
                        image_looks += _PACK.pack(seen.shape, seen.shape, seen.colours, num_images)
                    num_images += 1
                image_counts.append(len(record.media))
                self.stat_update("total")
                yield record
        with write_aside(self.work_dir / "images" / f"{rank:06d}.npy", "wb") as file:
            np.save(file, np.array(image_counts, np.int32))
        for table in self.tables:
            rows = {"exact": exact, "image_bytes": image_bytes}.get(table.name, image_looks)
            entries = np.frombuffer(bytes(rows), ENTRY).copy()
            if isinstance(table, NearTable):
                entries["key"] &= np.uint64(table.mask)
            entries.sort(order=("key", "check", "place"))
            with write_aside(table_path(self.work_dir, table, rank), "wb") as file:
                file.write(entries.tobytes())


def content_digest(record: Record, what: str) -> bytes | None:
    """16 bytes over a record's content, text or images; None where it has none of that."""
    digest = hashlib.blake2b(digest_size=16)
    parts: list[tuple[bytes, bytes]] = []
    images = [media.media_bytes or b"" for media in record.media]
    if what == "text":
        parts = [(b"t", _utf8(record.text))] if record.text.strip() else []
    elif what == "images":
        parts = [(b"i", data) for data in images]
    else:
        layout: list[dict[str, Any]] = record.metadata.get(LAYOUT, [{"text": record.text}])
        is_single = sum("text" in item for item in layout) == 1  # see from_record
        for item in layout:
            if "image" in item:
                parts.append((b"i", images[item["image"]]))
            else:
                parts.append((b"t", _utf8(record.text if is_single else item["text"])))
    for kind, data in parts:
        digest.update(kind + len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest() if parts else None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest_entry(digest: bytes, place: int) -> bytes:
    key, check = struct.unpack("<QQ", digest)
    return _PACK.pack(key, check, b"", place)

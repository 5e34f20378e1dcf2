"""The first step of an import: the documents of a unit as datatrove's records."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep

from corpora.document import Document, TextSegment
from corpora.pipeline.readers.base import BadRecord, Format, ReadLog
from corpora.pipeline.record import to_record, unit_key
from corpora.pipeline.units import Counter, Unit, read_units
from mllm.files import write_json


class ReadSource(PipelineStep):
    """Reads unit `rank` in its format, gives keys, and counts what cannot be used.

    After a unit, `DROPS_DIR/read/UNIT.json` holds what `Judge` writes too, and "broken_files".

    Args:
        source_format: how to read a part.
        units_path: what `write_units` wrote.
        drops_dir: for the drops.
        counters_dir: for the progress bar.
    """

    type = "READER"
    name = "read"

    def __init__(
        self, source_format: Format, units_path: Path, drops_dir: Path, counters_dir: Path
    ) -> None:
        super().__init__()
        self.source_format = source_format
        self.units_path = units_path
        self.drops_dir = drops_dir
        self.counters_dir = counters_dir

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        log = ReadLog()
        counter = Counter(self.counters_dir / f"{rank:06d}")
        for part in units_of(self.units_path)[rank]:
            log.bytes_in_part = 0
            for document in self.source_format.read(part, log):
                try:
                    record = _record(document, unit_key(rank, log.kept))
                except BadRecord as bad:
                    log.drop(bad.reason, unit_key(rank, log.kept), bad.excerpt)
                    continue
                log.kept += 1
                counter.bytes_done = log.bytes_before + log.bytes_in_part
                counter.tick()
                yield record
            log.bytes_before += part.size
        counter.write()
        self.stat_update("documents", value=log.kept)
        write_json(self.drops_dir / self.name / f"{rank:06d}.json", log.to_dict())


@lru_cache(maxsize=1)
def units_of(path: Path) -> list[Unit]:
    """The units of an import, read once a process."""
    return read_units(path)


def _record(document: Document, key: str) -> Record:
    for segment in document.segments:
        if isinstance(segment, TextSegment):
            try:
                segment.text.encode()
            except UnicodeEncodeError:
                raise BadRecord("text with half a surrogate pair", ascii(segment.text)) from None
    return to_record(replace(document, key=key))

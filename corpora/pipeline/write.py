"""The last step of a pass: records into tar shards, and staged shards back into records."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document as Record
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from corpora.document import from_members
from corpora.pipeline.record import from_record, to_record
from corpora.pipeline.units import Counter
from corpora.shards import ShardSeries
from corpora.storage import open_shard
from corpora.tar import read_samples


class WriteShards(PipelineStep):
    """Writes the records of unit U as `PREFIX-UUUUUU-000.tar` ... and passes them on.

    A unit that was killed is written again under the same names with the same bytes.

    Args:
        out_dir: an existing folder.
        samples_per_shard: None for one shard a unit.
        prefix: what names begin with.
    """

    type = "WRITER"
    name = "shards"

    def __init__(self, out_dir: Path, samples_per_shard: int | None, prefix: str = "shard") -> None:
        super().__init__()
        self.out_dir = out_dir
        self.samples_per_shard = samples_per_shard or sys.maxsize
        self.prefix = prefix

    def run(  # type: ignore[override]
        self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1
    ) -> Iterator[Record]:
        name = f"{self.prefix}-{rank:06d}-{{:03d}}.tar"
        with ShardSeries(self.out_dir, name, self.samples_per_shard) as series:
            for record in data or ():
                series.write(from_record(record))
                yield record
            self.stat_update("samples", value=series.num_samples)


class ReadStaged(PipelineStep):
    """Reads the records of unit `rank` that `WriteShards(staged_dir, None, "staged")` wrote."""

    type = "READER"
    name = "read_staged"

    def __init__(self, staged_dir: Path, counters_dir: Path | None = None) -> None:
        super().__init__()
        self.staged_dir = staged_dir
        self.counters_dir = counters_dir

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        name = f"staged-{rank:06d}-000.tar"
        if not (self.staged_dir / name).exists():
            return  # no record of this unit was kept
        counter = self.counters_dir and Counter(self.counters_dir / f"{rank:06d}")
        for sample in read_samples(open_shard(self.staged_dir, name)):
            if counter:
                counter.tick()
            yield to_record(from_members(sample.key, sample.members))
        if counter:
            counter.write()

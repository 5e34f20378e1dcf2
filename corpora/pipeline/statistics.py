"""datatrove's statistics of texts, without leaving them in the records."""

import contextlib
import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document as Record
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.stats import DocStats, LineStats, StatsMerger, WordStats
from datatrove.pipeline.stats.base import BaseStats
from datatrove.pipeline.stats.config import GROUP

from corpora.pipeline.dedup import Stage
from corpora.pipeline.words import WORDS

# The other two groups, by domain, need a URL in every record and the public suffix list.
GROUPS: list[GROUP] = ["summary", "histogram"]


class Measure(PipelineStep):
    """Runs one of datatrove's statistics on the texts and passes the records on untouched.

    datatrove's own step adds its numbers to a record's metadata, from where they would go into our
    shards.
    """

    type = "STATS"

    def __init__(self, block: BaseStats) -> None:
        super().__init__()
        self.block = block
        self.name = type(block).__name__

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # type: ignore[override]
        waiting: deque[Record] = deque()

        def texts() -> Iterator[Record]:
            for record in data or ():
                waiting.append(record)
                yield Record(record.text, record.id)

        for _ in self.block.run(texts(), rank, world_size):
            yield waiting.popleft()


class Merge(StatsMerger):
    """datatrove's step without its progress bars, one for each of some forty statistics."""

    name = "merge_statistics"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            list(super().run(data, rank, world_size))


def statistics_steps(parts_dir: str | Path) -> list[PipelineStep]:
    """Steps that count characters, lines and words, a file for each unit."""
    parts = str(parts_dir)
    return [
        Measure(DocStats(parts, groups_to_compute=GROUPS)),
        Measure(LineStats(parts, groups_to_compute=GROUPS)),
        Measure(WordStats(parts, groups_to_compute=GROUPS, language=WORDS)),
    ]


def statistics_stages(parts_dir: str | Path, stats_dir: str | Path) -> list[Stage]:
    """The stage that adds the units up, in `STATS_DIR/GROUP/STATISTIC/metric.json`."""
    return [Stage("statistics", [Merge(str(parts_dir), str(stats_dir))], 1)]

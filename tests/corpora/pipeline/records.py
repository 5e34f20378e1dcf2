"""Records, pictures and a runner of steps for the tests of the pipeline."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from PIL import Image

from corpora.document import Document, ImageSegment, Segment, TextSegment
from corpora.pipeline.dedup import DedupOptions, Stage, dedup_stages, removal_steps
from corpora.pipeline.judge import read_drops
from corpora.pipeline.record import to_record

Parts = list[str | bytes]


def record(key: str, *parts: str | bytes, **meta: Any) -> Record:
    """A record of texts (str) and encoded pictures (bytes), in order."""
    segments: list[Segment] = [
        TextSegment(part) if isinstance(part, str) else ImageSegment(part) for part in parts
    ]
    return to_record(Document(key, tuple(segments), meta))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(seed: int, size: int = 160) -> Image.Image:
    """A picture with shapes of its own: a few blurred blobs of random colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


class Units(PipelineStep):
    """A reader: unit `rank` of records that the test holds."""

    type, name = "READER", "units"

    def __init__(self, units: list[list[Record]]) -> None:
        super().__init__()
        self.units = units

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        for each in self.units[rank]:
            yield Record(each.text, each.id, list(each.media), dict(each.metadata))


def run_steps(steps: Iterable[PipelineStep], rank: int, num_ranks: int) -> list[Record]:
    data: Any = None
    for step in steps:
        data = step.run(data, rank, num_ranks)
    return list(data or ())


def run_stage(stage: Stage, num_units: int) -> None:
    num_ranks = num_units if stage.num_ranks is None else stage.num_ranks
    for rank in range(num_ranks):
        run_steps(stage.steps, rank, num_ranks)


def deduplicated(
    options: DedupOptions, units: list[list[Record]], folder: Path
) -> list[list[Record]]:
    """What is left of each unit, everything run in this process; drops under folder/drops."""
    reader = Units(units)
    for stage in dedup_stages(options, reader, folder / "work", len(units)):
        run_stage(stage, len(units))
    steps = [reader, *removal_steps(options, folder / "work", folder / "drops")]
    return [run_steps(steps, unit, len(units)) for unit in range(len(units))]


def dropped(drops_dir: Path, step: str, unit: int = 0) -> dict[str, int]:
    """Counts of a step's drops by reason."""
    return read_drops(drops_dir / step / f"{unit:06d}.json")["dropped"]

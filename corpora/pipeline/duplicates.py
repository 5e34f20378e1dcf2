"""Drops the duplicates that the stages of `dedup.py` found, and names who stays in their place."""

import json
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Record
from datatrove.data import DocumentsPipeline

from corpora.pipeline.clusters import KINDS, REMOVAL
from corpora.pipeline.images import remove_images
from corpora.pipeline.judge import Judge


class Duplicates(Judge):
    """Counts records and images of a unit as `Fingerprints` did, to know each by its place."""

    name = "duplicates"

    def __init__(self, drop_image_only: bool, work_dir: Path, drops_dir: str | Path) -> None:
        super().__init__(drops_dir)
        self.drop_image_only = drop_image_only
        self.work_dir = work_dir
        self.kept: dict[str, dict[int, tuple[int, int]]] = {}  # kind: place to (unit, place)
        self.next_record = self.next_image = 0
        self.survivor = ("", 0, 0)  # kind, unit and place of who stays for the record just dropped

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # type: ignore[override]
        removals = self.work_dir / "removals"
        self.kept = {kind: _of_unit(removals / f"{kind}.bin", rank) for kind in KINDS}
        self.next_record = self.next_image = 0
        yield from super().run(data, rank, world_size)

    def judge(self, record: Record) -> str | None:
        number, image = self.next_record, self.next_image
        self.next_record += 1
        self.next_image += len(record.media)
        for kind in ("exact", "near"):
            if number in self.kept[kind]:
                self.survivor = (kind, *self.kept[kind][number])
                return f"{kind} duplicate"
        known = {n for n in range(len(record.media)) if image + n in self.kept["image"]}
        if known and len(known) == len(record.media):
            self.survivor = ("image", *self.kept["image"][image])
            return "all images are duplicates"
        if self.drop_image_only and known:
            self.edited["image removed: duplicate"] += len(known)
            remove_images(record, known)
        return None

    def example(self, record: Record) -> dict[str, Any]:
        return {**super().example(record), "survivor": self._survivor_id()}

    def _survivor_id(self) -> str:
        kind, unit, place = self.survivor
        if kind == "image":
            ends = np.cumsum(np.load(self.work_dir / "images" / f"{unit:06d}.npy"))
            place = int(np.searchsorted(ends, place, side="right"))
        with open(self.work_dir / "ids" / f"{unit:06d}.txt", encoding="utf-8") as file:
            return json.loads(next(islice(file, place, None)))


def _of_unit(path: Path, unit: int) -> dict[int, tuple[int, int]]:
    """Place of each removal of a unit, to unit and place of who stays."""
    if path.stat().st_size == 0:
        return {}
    removals = np.memmap(path, REMOVAL, "r")
    start, stop = (bisect_left(removals["unit"], number) for number in (unit, unit + 1))
    return {
        int(row["place"]): (int(row["kept_unit"]), int(row["kept_place"]))
        for row in removals[start:stop]
    }

"""Duplicates over a whole corpus, as datatrove stages.

    fingerprints   one task a unit: digests, perceptual hashes, datatrove's MinHash signatures
    near           one task a MinHash bucket: datatrove's search for equal signatures
    pairs          one task a share of a table: equal digests, perceptual hashes a few bits apart
    clusters       one task: duplicates of duplicates; the first in input order survives
    removal        one task a unit, on reading the staged records again: `removal_steps`

"Input order" is (unit, number in the unit), so what survives does not depend on the number of
tasks. Memory: a unit's fingerprints; a block of `pairs.BLOCK` entries; 40 bytes for each record
or image that has a duplicate (`clusters`). Disk: about 1 kB a record for MinHash with its default
settings, 32 bytes an image in each of its tables (15 for hashes up to 4 bits apart).
"""

import math
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig

from corpora.pipeline.clusters import Clusters
from corpora.pipeline.duplicates import Duplicates
from corpora.pipeline.fingerprints import Fingerprints
from corpora.pipeline.options import option
from corpora.pipeline.pairs import ExactTable, FindPairs, NearTable, Table
from corpora.pipeline.words import WORDS
from mllm.errors import UserError

UNITS_PER_SHARE = 64  # of the tables' pairs; one task a table is enough for small corpora
MAX_DISTANCE = 8  # bits; 45 tables, keys of 12 bits


@dataclass(frozen=True)
class DedupOptions:
    """What counts as a duplicate. As it stands, nothing does."""

    exact: Literal["off", "content", "text", "images"] = option(
        "off", "drop records whose content (all segments), only text or only images stood before"
    )
    near_text: bool = option(False, "drop records whose text nearly stood before (MinHash)")
    near_ngram: int = option(5, "words in a row that MinHash compares; shorter texts never match")
    near_buckets: int = option(14, "MinHash buckets; more find less similar texts")
    near_hashes: int = option(8, "MinHash hashes per bucket; more ask for more similar texts")
    near_seed: int = option(1, "of MinHash's hash functions")
    images: Literal["off", "exact", "perceptual"] = option(
        "off", "find images that stood before: by their bytes, or also by how they look"
    )
    image_hash: Literal["phash", "dhash"] = option("phash", "perceptual hash (64 bits, imagehash)")
    image_distance: int = option(4, "bits in which hashes of duplicate images may differ, 0 to 8")
    image_colours: int = option(
        12, "levels of 255 in which a quarter's mean red, green or blue may differ"
    )
    on_duplicate_image: Literal["drop_document", "drop_image"] = option(
        "drop_document", "drop documents whose images are all duplicates, or only the images"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.image_distance <= MAX_DISTANCE:
            raise UserError(f"image_distance is {self.image_distance}; give 0 to {MAX_DISTANCE}")
        for name in ("near_ngram", "near_buckets", "near_hashes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name, known in (
            ("exact", ("off", "content", "text", "images")),
            ("images", ("off", "exact", "perceptual")),
            ("image_hash", ("phash", "dhash")),
            ("on_duplicate_image", ("drop_document", "drop_image")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}; one of {', '.join(known)}")

    @property
    def is_off(self) -> bool:
        return self.exact == "off" and not self.near_text and self.images == "off"

    @property
    def minhash(self) -> MinhashConfig:
        return MinhashConfig(
            n_grams=self.near_ngram,
            num_buckets=self.near_buckets,
            hashes_per_bucket=self.near_hashes,
            seed=self.near_seed,
        )


@dataclass(frozen=True)
class Stage:
    """Steps that run together, once for each rank."""

    name: str
    steps: list[PipelineStep]
    num_ranks: int | None  # None: one rank a unit


def dedup_stages(
    options: DedupOptions, reader: PipelineStep, work_dir: str | Path, num_units: int
) -> list[Stage]:
    """The stages that find duplicates, in the order in which they run.

    Args:
        reader: Yields the staged records of unit `rank`.
        work_dir: Folder of intermediate files; of this corpus and these options alone.
    """
    if options.is_off:
        return []
    work_dir = Path(work_dir)
    steps = [reader, Fingerprints(options.exact, options.image_hash, _tables(options), work_dir)]
    signatures, near = str(work_dir / "signatures"), str(work_dir / "pairs" / "near")
    if options.near_text:
        steps.append(MinhashDedupSignature(signatures, options.minhash, language=WORDS))
    stages = [Stage("fingerprints", steps, None)]
    if options.near_text:
        buckets = Buckets(signatures, near, config=options.minhash)
        stages.append(Stage("near", [buckets], options.near_buckets))
    if tables := _tables(options):
        pairs = FindPairs(tables, math.ceil(num_units / UNITS_PER_SHARE), work_dir)
        stages.append(Stage("pairs", [pairs], pairs.num_ranks))
    return [*stages, Stage("clusters", [Clusters(work_dir)], 1)]


def removal_steps(
    options: DedupOptions, work_dir: str | Path, drops_dir: str | Path
) -> list[PipelineStep]:
    """The step that drops what the stages found; it must see every staged record, in order."""
    if options.is_off:
        return []
    return [Duplicates(options.on_duplicate_image == "drop_image", Path(work_dir), drops_dir)]


class Buckets(MinhashDedupBuckets):
    """datatrove's step, which reads one file of every unit at the same time."""

    def run(
        self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Any] | None:
        files = len(self.input_folder.list_files(subdirectory="bucket_000")) + 256
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < files:
            raise UserError(
                f"near_text: {files:,} files must be open at once and the system allows {hard:,}; "
                "raise `ulimit -Hn`, or cut the input into fewer units"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
        return super().run(data, rank, world_size)


def _tables(options: DedupOptions) -> list[Table]:
    tables: list[Table] = []
    if options.exact != "off":
        tables.append(ExactTable("exact", "exact"))
    if options.images != "off":
        tables.append(ExactTable("image_bytes", "image"))
    if options.images == "perceptual":
        distance = options.image_distance
        # Hashes at most d bits apart agree in 2 of d + 2 blocks at least (pigeonhole).
        blocks = [_block(number, distance + 2) for number in range(distance + 2)]
        for number, (one, other) in enumerate(combinations(blocks, 2)):
            tables.append(
                NearTable(
                    f"image_look_{number:02d}",
                    "image",
                    one | other,
                    distance,
                    options.image_colours,
                )
            )
    return tables


def _block(number: int, count: int) -> int:
    """The mask of one of `count` blocks that 64 bits are cut into."""
    start, stop = number * 64 // count, (number + 1) * 64 // count
    return (1 << stop) - (1 << start)

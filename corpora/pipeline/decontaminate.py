"""Drops documents that hold what an evaluation file holds: words in a row, or a picture.

The index is made from the evaluation files alone, so the step that drops can run with the filters,
before duplicates are looked for; then no document survives in the place of a contaminated one.

Text is compared by datatrove's n-grams (its normalisation: lower case, no punctuation, no accents,
digits as 0; its index format and filter). Its indexer imports lighteval, which is not needed for
files, so the index is written here. Pictures are compared by their bytes and by their looks.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datatrove.data import Document as Record
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import ngrams, simplify_text

from corpora.pipeline.dedup import MAX_DISTANCE, Stage
from corpora.pipeline.evaluation_files import evaluation_files, items
from corpora.pipeline.judge import Judge
from corpora.pipeline.options import option
from corpora.pipeline.picture_hash import COLOURS, looks
from corpora.pipeline.words import WORDS
from mllm.errors import UserError
from mllm.files import write_aside, write_json

PICTURE = np.dtype([("shape", "<u8"), ("colours", "<i2", (COLOURS,)), ("file", "<u4")])


@dataclass(frozen=True)
class DecontaminationOptions:
    """What counts as a part of an evaluation file."""

    ngram: int = option(13, "words in a row shared with a text; shorter texts are not searched for")
    images: Literal["off", "exact", "perceptual"] = option(
        "perceptual", "compare pictures by their bytes, or also by how they look"
    )
    image_hash: Literal["phash", "dhash"] = option("phash", "perceptual hash (64 bits)")
    image_distance: int = option(4, "bits in which hashes may differ, 0 to 8")
    image_colours: int = option(
        12, "levels of 255 in which a quarter's mean red, green or blue may differ"
    )

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise UserError(f"ngram is {self.ngram}; give 1 or more")
        if not 0 <= self.image_distance <= MAX_DISTANCE:
            raise UserError(f"image_distance is {self.image_distance}; give 0 to {MAX_DISTANCE}")

    @property
    def config(self) -> NGramsDecontConfig:
        return NGramsDecontConfig(n_grams=self.ngram)


def decontamination_stages(
    paths: Iterable[str | Path], work_dir: str | Path, options: DecontaminationOptions
) -> list[Stage]:
    """The stage that indexes the evaluation files; none for no files.

    Raises:
        UserError: A file is not there or of no known kind.
    """
    files = evaluation_files(paths)
    index = EvaluationIndex(files, options, Path(work_dir))
    return [Stage("evaluation", [index], 1)] if files else []


def decontamination_steps(
    work_dir: str | Path, drops_dir: str | Path, options: DecontaminationOptions
) -> list[PipelineStep]:
    """The step that drops, once the index is there."""
    return [Contamination(options, Path(work_dir), drops_dir)]


def evaluation_read(work_dir: Path) -> list[dict[str, Any]]:
    """What the index was made of: path, ngrams, texts, short_texts, pictures, broken_pictures."""
    return _read_json(work_dir / "evaluation" / "read.json")


class EvaluationIndex(PipelineStep):
    """Writes `WORK/evaluation/`: datatrove's n-gram index, the pictures, and what was read.

    Memory: the n-grams of one file, and about 500 bytes a picture.
    """

    type = "DECONT"
    name = "evaluation_index"

    def __init__(self, files: list[Path], options: DecontaminationOptions, work_dir: Path) -> None:
        super().__init__()
        self.files = files
        self.options = options
        self.folder = work_dir / "evaluation"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        read: list[dict[str, Any]] = []
        digests: dict[str, int] = {}
        pictures: list[tuple[int, list[int], int]] = []
        for number, path in enumerate(self.files):
            hashes: set[int] = set()
            counts = Counter(texts=0, short_texts=0, pictures=0, broken_pictures=0)
            for item in items(path):
                if isinstance(item, str):
                    found = self._hashes(item)
                    counts["texts"] += 1
                    counts["short_texts"] += not found
                    hashes.update(found)
                    continue
                counts["pictures"] += 1
                digests.setdefault(_digest(item), number)
                seen = looks(item, self.options.image_hash)
                counts["broken_pictures"] += seen is None
                if seen:
                    pictures.append((seen.shape, list(seen.colours), number))
            array = np.array(sorted(hashes), np.uint64)
            with write_aside(self.folder / "ngrams" / f"{number:06d}.index.hashes", "wb") as file:
                file.write(array.astype("<u8").tobytes())
            read.append({"path": str(path), "ngrams": len(array), **counts})
        with write_aside(self.folder / "pictures.npy", "wb") as file:
            np.save(file, np.array(pictures, PICTURE))
        write_json(self.folder / "digests.json", digests)
        write_json(self.folder / "read.json", read)

    def _hashes(self, text: str) -> list[int]:
        config = self.options.config
        words = WORDS.word_tokenize(simplify_text(text, config.norm_config))
        hash_words = create_hash_func(config.hash_config)
        return [hash_words(" ".join(gram)) for gram in ngrams(words, config.n_grams)]


@dataclass(frozen=True)
class Index:
    """What `EvaluationIndex` wrote, read back."""

    paths: list[str]
    words: NGramsDecontFilter
    digests: dict[str, int]  # of pictures, 32 hex: the number of a path
    pictures: np.ndarray  # PICTURE (N,)


class Contamination(Judge):
    """Drops what the index knows, with the evaluation file as the reason."""

    name = "evaluation"

    def __init__(
        self, options: DecontaminationOptions, work_dir: Path, drops_dir: str | Path
    ) -> None:
        super().__init__(drops_dir)
        self.options = options
        self.folder = work_dir / "evaluation"
        self.match = ""  # the words found last

    def judge(self, record: Record) -> str | None:
        index = self._index()
        self.match = ""
        copy = Record(record.text, record.id)  # the filter leaves notes in the metadata
        if index.words.filter(copy) is not True:
            self.match = copy.metadata["contaminated_ngram"]
            return f"text of {index.paths[int(copy.metadata['contaminated_task'])]}"
        if self.options.images == "off" or not index.digests:
            return None
        for media in record.media:
            if (file := self._file_of(media.media_bytes or b"", index)) is not None:
                return f"image of {index.paths[file]}"
        return None

    def example(self, record: Record) -> dict[str, Any]:
        return super().example(record) | ({"match": self.match} if self.match else {})

    def _index(self) -> Index:
        written = (self.folder / "read.json").stat().st_mtime_ns
        return _load_index(self.folder, self.options.ngram, written)

    def _file_of(self, data: bytes, index: Index) -> int | None:
        """The number of the evaluation file that holds a picture, or one that looks like it."""
        if (file := index.digests.get(_digest(data))) is not None:
            return file
        if self.options.images == "exact" or len(index.pictures) == 0:
            return None
        if (seen := looks(data, self.options.image_hash)) is None:
            return None
        apart = np.bitwise_count(index.pictures["shape"] ^ np.uint64(seen.shape))
        shades = np.abs(index.pictures["colours"] - np.array(list(seen.colours), np.int16))
        is_close = apart <= self.options.image_distance
        is_close &= (shades <= self.options.image_colours).all(axis=1)
        return int(index.pictures["file"][is_close.argmax()]) if is_close.any() else None


@lru_cache(maxsize=1)
def _load_index(folder: Path, ngram: int, written: int) -> Index:
    """Read once a process: about 100 bytes an n-gram. `written` tells one index from the next."""
    config = NGramsDecontConfig(n_grams=ngram)
    return Index(
        paths=[read["path"] for read in _read_json(folder / "read.json")],
        words=NGramsDecontFilter(str(folder / "ngrams"), config=config, language=WORDS),
        digests=_read_json(folder / "digests.json"),
        pictures=np.load(folder / "pictures.npy"),
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

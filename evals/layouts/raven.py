"""Raven's puzzles: the IQ test's own pictures, and the drawn sets RAVEN and I-RAVEN.

    DIR/iq.jsonl                          {"id", "context": [3, 4 or 8 paths],
                                           "candidates": [6 paths], "answer": 0..5}
    DIR/{config}/RAVEN_{i}_{split}.npz    image uint8 (16, 160, 160), first 8 the cells; target 0..7

The release of IQ50 could not be looked at, so `iq.jsonl` is written by whoever unpacks it.
"""

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from corpora.document import ImageSegment
from evals.layouts.files import Record, by_id, find_file, named, read_jsonl
from mllm.errors import UserError

NUM_CELLS = (3, 4, 8)  # of a puzzle of 2 x 2, of a row of 5, of 3 x 3
NUM_CANDIDATES = 6
NPZ_CELLS = 8


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A puzzle of iq.jsonl; `answer` is the right candidate's place."""

    id: str
    context: tuple[Path, ...]
    candidates: tuple[Path, ...]
    answer: int


def load_iq(folder: Path) -> list[Puzzle]:
    """The puzzles of `iq.jsonl`; paths begin at its folder."""
    path = find_file(folder, ["iq.jsonl"], "IQ50")
    puzzles = [_puzzle(row, name) for name, row in by_id(read_jsonl(path), "id").items()]
    if not puzzles:
        raise UserError(f"{path}: holds no puzzle")
    return puzzles


def _puzzle(row: Record, name: str) -> Puzzle:
    context, candidates = _paths(row, "context"), _paths(row, "candidates")
    if len(context) not in NUM_CELLS:
        raise row.error(f'"context" has {len(context)} paths, must have 3, 4 or 8')
    if len(candidates) != NUM_CANDIDATES:
        raise row.error(f'"candidates" has {len(candidates)} paths, must have {NUM_CANDIDATES}')
    answer = row.get("answer", int)
    if not 0 <= answer < NUM_CANDIDATES:
        raise row.error(f'"answer" is {answer}, must be 0 to {NUM_CANDIDATES - 1}, counted from 0')
    return Puzzle(name, context, candidates, answer)


def _paths(row: Record, key: str) -> tuple[Path, ...]:
    values = row.get(key, list)
    if not all(type(value) is str and value for value in values):
        raise row.error(f'"{key}" must be a list of paths')
    return tuple(row.path.parent / value for value in values)


def existing(puzzles: Sequence[Puzzle], skip_missing: bool) -> tuple[list[Puzzle], int]:
    """Puzzles that have all their pictures, and how many have not.

    Raises:
        UserError: Pictures are missing and are not to be skipped, or no puzzle is whole.
    """
    missing = [path for p in puzzles for path in (*p.context, *p.candidates) if not path.is_file()]
    lacking = set(missing)
    whole = [p for p in puzzles if lacking.isdisjoint((*p.context, *p.candidates))]
    if missing and (not skip_missing or not whole):
        mend = "unpack the rest" + (", or pass --skip-missing" if whole else "")
        paths = dict.fromkeys(missing)
        raise UserError(f"{len(paths)} pictures are missing ({named(paths)}); {mend}")
    return whole, len(puzzles) - len(whole)


# ----------------------------------------------------------------------------------------------
# RAVEN and I-RAVEN


class NpzCell(ImageSegment):
    """One of the 16 pictures of a puzzle's file, drawn as PNG when it is looked at."""

    def __init__(self, path: Path, place: int) -> None:
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "place", place)

    path: Path
    place: int

    @property
    def data(self) -> bytes:  # type: ignore[override]
        images, _ = read_npz(self.path)
        file = io.BytesIO()
        Image.fromarray(images[self.place]).save(file, "PNG")
        return file.getvalue()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NpzCell) and (other.path, other.place) == (self.path, self.place)

    def __hash__(self) -> int:
        return hash((self.path, self.place))


def find_npz(folder: Path, split: str) -> dict[str, Path]:
    """The puzzles of a split by `{config}/RAVEN_{i}`."""
    paths = sorted(folder.rglob(f"RAVEN_*_{split}.npz"))
    if not paths:
        raise UserError(
            f"{folder}: holds no {{config}}/RAVEN_{{i}}_{split}.npz; name the folder that RAVEN or "
            f"I-RAVEN was unpacked in"
        )
    return {_name(path.relative_to(folder), split): path for path in paths}


def _name(path: Path, split: str) -> str:
    return path.as_posix().removesuffix(f"_{split}.npz")


@lru_cache(maxsize=32)
def read_npz(path: Path) -> tuple[np.ndarray, int]:
    """uint8 (16, 160, 160) and the right candidate's place, 0..7.

    Raises:
        UserError: The file is no such puzzle.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields: Iterable[str] = arrays.files
            for key in ("image", "target"):
                if key not in fields:
                    found = ", ".join(fields) or "nothing"
                    raise UserError(f"{path}: no array {key!r} (found {found}); is it a RAVEN set?")
            images, target = arrays["image"], int(arrays["target"])
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: cannot be read as .npz ({reason}); unpack it again") from None
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != 2 * NPZ_CELLS:
        raise UserError(
            f"{path}: image is {images.dtype} {images.shape}, must be uint8 (16, 160, 160)"
        )
    if not 0 <= target < NPZ_CELLS:
        raise UserError(f"{path}: target is {target}, must be 0 to {NPZ_CELLS - 1}")
    return images, target

"""Raven's matrices as users download them: the 50 of KOSMOS-1's IQ test, RAVEN and I-RAVEN."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

from evals.api import ImageFile, Measured, Query, Support
from evals.layouts.files import find_file
from evals.layouts.raven import NPZ_CELLS, NpzCell, existing, find_npz, load_iq, read_npz
from evals.layouts.release import files_fingerprint, listing_fingerprint
from evals.options import TaskOptions
from evals.tasks.raven import MatrixTask
from mllm.errors import UserError

Z95 = 1.959964  # of the normal distribution, two-sided


class _MatrixSet(MatrixTask):
    """A set without shots whose score stands with its interval: 50 answers leave it wide."""

    def support(self) -> Support:
        raise UserError(f"{self.name} has no training part; use --shots 0")

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        measured = super().measure(rows)
        measured.extra["interval_95"] = interval_95(measured.score / 100, len(rows))
        return measured


class Iq50(_MatrixSet):
    """`iq.jsonl`, six candidates."""

    name = corpus_name = "iq50"
    split = "test"

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.use_norm(options.norm)
        self.folder_path = folder
        puzzles, self.num_left_out = existing(load_iq(folder), options.skip_missing)
        self.puzzles = {puzzle.id: puzzle for puzzle in puzzles}

    @cached_property
    def data_fingerprint(self) -> str:
        pictures = {path for p in self.puzzles.values() for path in (*p.context, *p.candidates)}
        path = find_file(self.folder_path, ["iq.jsonl"], "IQ50")
        return files_fingerprint([path, *sorted(pictures)])

    def ids(self) -> list[str]:
        return list(self.puzzles)

    def problems(self) -> dict[str, int]:
        return {"without all their pictures": self.num_left_out} if self.num_left_out else {}

    def query(self, query_id: str) -> Query:
        puzzle = self.puzzles[query_id]
        cells = [ImageFile(path) for path in puzzle.context]
        candidates = [ImageFile(path) for path in puzzle.candidates]
        return self.asked(query_id, cells, candidates, puzzle.answer)


class Raven(_MatrixSet):
    """RAVEN or I-RAVEN, test split, eight cells and eight candidates.

    In RAVEN's own answer sets the right one can be told from the candidates alone, which the
    control `no_context` shows; I-RAVEN mends that.
    """

    name = corpus_name = "raven"
    split = "test"

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.use_norm(options.norm)
        self.folder_path = folder
        self.paths = find_npz(folder, self.split)

    @cached_property
    def data_fingerprint(self) -> str:
        return listing_fingerprint(self.folder_path, self.paths.values())

    def ids(self) -> list[str]:
        return list(self.paths)

    def query(self, query_id: str) -> Query:
        path = self.paths[query_id]
        _, target = read_npz(path)
        cells = [NpzCell(path, place) for place in range(2 * NPZ_CELLS)]
        return self.asked(query_id, cells[:NPZ_CELLS], cells[NPZ_CELLS:], target)


def interval_95(share: float, n: int) -> list[float]:
    """Wilson's interval of a share (0 to 1), in %: it holds at 50 answers and near 0 and 100."""
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return [round(100 * (middle - half), 2), round(100 * (middle + half), 2)]

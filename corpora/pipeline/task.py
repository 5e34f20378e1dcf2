"""One task of an executor: its share of the ranks of a stage, each run as a pipeline of its own."""

import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from mllm.errors import UserError
from mllm.files import write_json


class EachRank(PipelineStep):
    """Runs steps once for each rank r with r % (number of tasks) = this task.

    A rank is a unit, or what a stage of the search for duplicates divides its work by. The steps
    see (rank, num_ranks), never the number of tasks, so that their output does not depend on it. A
    finished rank leaves `STAGE_DIR/done/RANK.json` and is not run again; a task that fails leaves
    `STAGE_DIR/failed/TASK.json` for the command's last line.
    """

    type = "TASK"
    name = "ranks"

    def __init__(self, steps: list[PipelineStep], num_ranks: int, stage_dir: Path) -> None:
        super().__init__()
        self.steps = steps
        self.num_ranks = num_ranks
        self.stage_dir = stage_dir

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        try:
            for number in range(rank, self.num_ranks, world_size):
                done = self.stage_dir / "done" / f"{number:06d}.json"
                if not done.exists():
                    write_json(done, self._run_rank(number))
                    self.stat_update("ranks")
        except Exception as error:
            is_user = isinstance(error, UserError | OSError)
            failure = {"error": str(error), "type": type(error).__name__, "is_user": is_user}
            write_json(self.stage_dir / "failed" / f"{rank:05d}.json", failure)
            raise

    def _run_rank(self, number: int) -> dict[str, Any]:
        started = time.monotonic()
        records = images = text_bytes = 0
        # A copy: steps keep state while they run, and must begin each rank as they were made.
        data: Any = None
        for step in deepcopy(self.steps):
            data = step(data, number, self.num_ranks)
        for record in data or ():
            records += 1
            images += len(record.media)
            text_bytes += len(record.text.encode())
        return {
            "records": records,
            "images": images,
            "text_bytes": text_bytes,
            "seconds": round(time.monotonic() - started, 3),
        }


def done_ranks(stage_dir: Path) -> list[dict[str, Any]]:
    """What the finished ranks of a stage left, in order of rank."""
    return [json.loads(path.read_bytes()) for path in sorted((stage_dir / "done").glob("*.json"))]


def failure(stage_dir: Path) -> dict[str, Any] | None:
    """The failure of the first task that failed, if one did."""
    paths = sorted((stage_dir / "failed").glob("*.json"))
    return json.loads(paths[0].read_bytes()) if paths else None

"""`--rescore`: the metrics again, from the rows of an earlier run and without a model."""

import json
from pathlib import Path
from typing import Any

from evals.api import Baselines, Task
from evals.cell_scores import measure, score_entry
from evals.rows import Row, gather, read_settings, whole_rows
from mllm.errors import UserError
from mllm.files import write_json


def rescore(out_dir: Path, tasks: dict[str, Task]) -> dict[str, Any]:
    """Measures every cell of `out_dir/results.json` whose task is among `tasks`, and rewrites it.

    Baselines stand as they were: they need the model's image size.

    Raises:
        UserError: There is no results.json, or rows are missing.
    """
    path = out_dir / "results.json"
    if not path.is_file():
        raise UserError(f"--rescore: {path} is missing; run the evaluation with --model first")
    results = json.loads(path.read_text(encoding="utf-8"))
    results["cells"] = [
        _rescored(cell, tasks[cell["suite"]], out_dir) if cell["suite"] in tasks else cell
        for cell in results["cells"]
    ]
    write_json(path, results)
    return results


def _rescored(cell: dict[str, Any], task: Task, out_dir: Path) -> dict[str, Any]:
    if cell["split"] != task.split:
        return cell
    samples = {entry["seed"]: entry["samples"] for entry in cell["per_seed"]}
    rows = {seed: _rows(out_dir / file, cell) for seed, file in samples.items()}
    first_dir = (out_dir / samples[next(iter(samples))]).parent
    row_scores = json.loads((first_dir.parent / "baselines.json").read_text(encoding="utf-8"))
    baselines = Baselines(others=cell["baselines"], row_scores=row_scores)
    scores = score_entry(task, rows, samples, baselines)
    if (zero_shot := cell["extra"].get("zero_shot_same_queries")) is not None:
        scores["extra"]["zero_shot_same_queries"] = zero_shot
    controls = {
        name: old | measure(task, _rows(first_dir / name / "samples.jsonl", cell))
        for name, old in {"blind": cell["blind"], **cell["controls"]}.items()
        if old is not None
    }
    return cell | scores | {"blind": controls.pop("blind", None), "controls": controls}


def _rows(path: Path, cell: dict[str, Any]) -> list[Row]:
    if not path.is_file():
        raise UserError(f"--rescore: {path} is missing; run the evaluation with --model again")
    read_settings(path.parent / "settings.json")
    ids = sorted(row["id"] for row in whole_rows(path))
    if len(ids) != cell["n"]:
        raise UserError(
            f"--rescore: {path} has {len(ids)} rows and results.json says {cell['n']}; "
            f"run the evaluation with --model again"
        )
    return gather(path.parent, ids)

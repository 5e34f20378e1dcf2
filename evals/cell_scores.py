"""What rows say: the score of a cell over its seeds, its error, and how it stands to baselines."""

import math
from pathlib import Path
from typing import Any

from evals.api import Baselines, Measured, Task
from evals.rows import Row, clusters, read_settings, whole_rows
from evals.uncertainty import deviation, mean_se, ratio_se


def score_entry(
    task: Task, rows: dict[int, list[Row]], samples: dict[int, str], baselines: Baselines
) -> dict[str, Any]:
    """What follows from rows alone: the score over seeds, and how it stands to the baselines.

    Args:
        rows: By seed, in the order of query ids.
        samples: By seed, where they stand.
    """
    per_seed = []
    for seed, found in rows.items():
        measured = task.measure(found)
        numbers = _numbers(measured, len(found))
        extra = measured.extra | task.further(found)
        entry = {"seed": seed, **numbers, "extra": extra, "samples": samples[seed]}
        per_seed.append(entry)
    scores = [entry["score"] for entry in per_seed if entry["score"] is not None]
    score = sum(scores) / len(scores) if len(scores) == len(per_seed) else math.nan
    se = _pooled_se(rows, per_seed, task)
    return {
        "score": rounded(score),
        "se": rounded(se),
        "verdicts": verdicts(task, rows, score, se, baselines),
        "seed_sd": rounded(deviation(scores)) if scores else None,
        "per_seed": per_seed,
        "extra": dict(per_seed[0]["extra"]),
    }


def measure(task: Task, rows: list[Row]) -> dict[str, Any]:
    """Score, standard error and n of one run."""
    return _numbers(task.measure(rows), len(rows))


def zero_shot_score(
    task: Task, settings: dict[str, Any], ids: list[str], seed_dir: Path
) -> dict[str, float | None]:
    """The k = 0 score on the same queries, which a few-shot score is to be held against.

    Empty where `seed_dir` lacks rows of the same model and task for all of them.
    """
    path, settings_path = seed_dir / "samples.jsonl", seed_dir / "settings.json"
    if not (path.exists() and settings_path.exists()):
        return {}
    before = read_settings(settings_path)
    decisive = ("model", "device", "dtype", "data", *task.settings)
    rows = {row["id"]: row for row in whole_rows(path)}
    if any(before.get(key) != settings[key] for key in decisive) or not rows.keys() >= set(ids):
        return {}
    return {"zero_shot_same_queries": rounded(task.measure([rows[i] for i in ids]).score)}


def _numbers(measured: Measured, n: int) -> dict[str, Any]:
    return {"score": rounded(measured.score), "se": rounded(measured.se), "n": n}


def rounded(value: float | None) -> float | None:
    """Four decimals; None where a number has no meaning (JSON has no NaN)."""
    return None if value is None or math.isnan(value) else round(value, 4)


def _pooled_se(rows: dict[int, list[Row]], per_seed: list[dict[str, Any]], task: Task) -> float:
    """Of the mean over seeds. Seeds share their queries, so queries are the independent unit."""
    if len(per_seed) == 1:
        se = per_seed[0]["se"]
        return math.nan if se is None else se
    by_query = _mean_scores(task, rows)
    if by_query is None:  # no mean over queries, such as AUC: seeds are all there is
        found = [entry["se"] for entry in per_seed if entry["se"] is not None]
        return sum(found) / len(found) if found else math.nan
    return _scale(task) * mean_se(by_query, clusters(next(iter(rows.values()))))


def _mean_scores(task: Task, rows: dict[int, list[Row]]) -> list[float] | None:
    """Mean over seeds of each query's score, in query order."""
    runs = [task.row_scores(run) for run in rows.values()]
    if any(run is None for run in runs):
        return None
    return [sum(column) / len(runs) for column in zip(*runs, strict=True)]  # type: ignore[arg-type]


def _scale(task: Task) -> float:
    return 100.0 if task.unit == "%" else 1.0


def verdicts(
    task: Task,
    rows: dict[int, list[Row]],
    score: float,
    se: float,
    baselines: Baselines,
) -> list[dict[str, Any]]:
    """Model against each baseline; paired by query where the baseline has a score for each."""
    made = []
    first = next(iter(rows.values()))
    scores = _mean_scores(task, rows)
    for name, value in baselines.others.items():
        gap_se = se
        if name in baselines.row_scores and scores is not None:
            other, weights = baselines.row_scores[name], [task.row_weight(row) for row in first]
            gaps = [
                weight * (mine - other[row["id"]])
                for mine, row, weight in zip(scores, first, weights, strict=True)
            ]
            gap_se = _scale(task) * ratio_se(gaps, weights, clusters(first))
        gain = (score - value) * (1 if task.is_higher_better else -1)
        is_clear = abs(gain) > 2 * gap_se + 1e-9  # False where se is NaN; float noise is no gap
        relation = ("better than" if gain > 0 else "worse than") if is_clear else "level with"
        made.append(
            {
                "baseline": name,
                "relation": relation,
                "difference": rounded(score - value),
                "se": rounded(gap_se),
            }
        )
    return made

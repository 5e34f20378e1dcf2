"""A cell of the score table: ask every query, append its row, measure once over all rows."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evals.api import (
    Baselines,
    GenerateRequest,
    Measured,
    Model,
    Prompt,
    Query,
    RankRequest,
    Response,
    Separator,
    Task,
    TextScore,
)
from evals.controls import derange, with_pictures_of
from evals.scoring import mean_se, ratio_se
from evals.select import select
from evals.shots import build_prompts, check_budget, num_positions
from mllm.command import progress
from mllm.errors import UserError
from mllm.files import fingerprint, write_json

VERSIONED = ("torch", "transformers", "numpy", "pillow", "sentencepiece")


@dataclass(frozen=True)
class CellOptions:
    """What a run fixes for one cell.

    Args:
        num_shots: k.
        seeds: Of the shots; without shots only the first is run.
        limit: At most this many queries by id hash; None for all.
        separator: Between shots.
        batch_size: Requests a batch, in the order of query ids.
        is_blind: Whether the blind control runs too (first seed).
    """

    num_shots: int
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    separator: Separator = "eos"
    batch_size: int = 32
    is_blind: bool = True


def versions() -> dict[str, str]:
    """Versions of what computes an answer."""
    return {name: version(name) for name in VERSIONED}


def run_cell(task: Task, model: Model, options: CellOptions, out_dir: Path) -> dict[str, Any]:
    """Runs or resumes one cell and gives its entry of results.json.

    Rows go to `out_dir/{task}_{split}/k{K}/seed{S}/samples.jsonl`, those of the blind control to
    `.../seed{S}/blind/samples.jsonl`.

    Raises:
        UserError: Prompts that do not fit the model, or rows of other settings in `out_dir`.
    """
    queries = [task.query(query_id) for query_id in select(task.ids(), options.limit)]
    if not queries:
        raise UserError(f"{task.folder}: no queries; check --data and --limit")
    seeds = options.seeds if options.num_shots > 0 else options.seeds[:1]
    prompts = {seed: _prompts(task, queries, options, seed) for seed in seeds}
    if task.has_images:
        for seed in seeds:
            lengths = [_answer_tokens(task, prompt, model) for prompt in prompts[seed]]
            check_budget(prompts[seed], lengths, model)
    settings = _settings(task, model, queries, options)
    baselines = task.baselines(queries, model)  # before asking, so that missing data shows
    folder = out_dir / task.folder / f"k{options.num_shots}"
    rows, per_seed = {}, []
    for seed in seeds:
        seed_dir = folder / f"seed{seed}"
        label = f"{task.folder} k={options.num_shots} seed {seed}"
        rows[seed] = collect(
            task, model, prompts[seed], seed_dir, settings | {"seed": seed}, options, label
        )
        measured = task.measure(rows[seed])
        per_seed.append(
            {
                "seed": seed,
                **_numbers(measured, len(rows[seed])),
                "extra": measured.extra,
                "samples": str((seed_dir / "samples.jsonl").relative_to(out_dir)),
            }
        )
    blind = None
    if task.has_images and options.is_blind:
        blind = _blind(task, model, prompts[seeds[0]], folder, settings, seeds[0], options)
    extra = per_seed[0]["extra"]
    if options.num_shots > 0:
        ids = [query.id for query in queries]
        extra = extra | _zero_shot(task, settings, ids, folder.parent / "k0" / f"seed{seeds[0]}")
    scores = [entry["score"] for entry in per_seed]
    score, se = sum(scores) / len(scores), _pooled_se(rows, per_seed, task)
    asked_ms = sum(row["ms"] for seed in seeds for row in rows[seed])
    return {
        "suite": task.name,
        "split": task.split,
        "num_shots": options.num_shots,
        "metric": task.metric,
        "unit": task.unit,
        "is_higher_better": task.is_higher_better,
        "score": _rounded(score),
        "se": _rounded(se),
        "n": len(queries),
        "chance": _rounded(baselines.chance),
        "majority": _rounded(baselines.majority),
        "baselines": {name: _rounded(value) for name, value in baselines.others.items()},
        "baseline_notes": baselines.notes,
        "verdicts": _verdicts(task, rows, score, se, baselines),
        "blind": blind,
        "seed_sd": _rounded(_deviation(scores)),
        "per_seed": per_seed,
        "extra": extra,
        "seconds": round((asked_ms + (blind or {"ms": 0})["ms"]) / 1000, 1),
        "settings": settings,
    }


def collect(
    task: Task,
    model: Model,
    prompts: Sequence[Prompt],
    folder: Path,
    settings: dict[str, Any],
    options: CellOptions,
    label: str,
) -> list[dict[str, Any]]:
    """All rows of one run in the order of `prompts`, asking only for those not yet on disk.

    Batches are formed over all prompts before any is skipped, so that a resumed run asks in the
    same batches and gets the same numbers.

    Raises:
        UserError: `folder` holds rows of other settings, or rows that do not belong.
    """
    path = folder / "samples.jsonl"
    done = _resume(folder, settings, [prompt.query.id for prompt in prompts])
    size = options.batch_size
    batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    with open(path, "a", encoding="utf-8") as file:
        for batch in progress(batches, label):
            if all(prompt.query.id in done for prompt in batch):
                continue
            started = time.perf_counter()
            responses = ask(task, model, batch)
            ms = round(1000 * (time.perf_counter() - started) / len(batch), 2)
            for prompt, response in zip(batch, responses, strict=True):
                if prompt.query.id in done:
                    continue
                row = {
                    "id": prompt.query.id,
                    "corpus": task.corpus_name,
                    "shots": [shot.id for shot in prompt.shots],
                    "prompt_sha": prompt.sha(),
                    "n_prompt_tokens": num_positions(prompt, model),
                    "n_images": prompt.num_images,
                    **task.row(prompt.query, response),
                    "ms": ms,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                done[prompt.query.id] = row
            file.flush()
    return [done[prompt.query.id] for prompt in prompts]


def ask(task: Task, model: Model, batch: Sequence[Prompt]) -> Sequence[Response]:
    """One batch through the door that its kind of request needs."""
    requests = [task.request(prompt) for prompt in batch]
    if isinstance(requests[0], RankRequest):
        return model.loglikelihood(requests)  # type: ignore[arg-type]
    if isinstance(requests[0], GenerateRequest):
        return model.generate_until(requests)  # type: ignore[arg-type]
    texts = [segment.text for p in batch for segment in p.query.segments]  # type: ignore[union-attr]
    answers: list[TextScore] = model.loglikelihood_rolling(texts)
    return answers


def _prompts(task: Task, queries: list[Query], options: CellOptions, seed: int) -> list[Prompt]:
    return build_prompts(
        queries,
        task.support,
        seed=seed,
        task=task.name,
        split=task.split,
        num_shots=options.num_shots,
        separator=options.separator,
    )


def _answer_tokens(task: Task, prompt: Prompt, model: Model) -> int:
    request = task.request(prompt)
    if isinstance(request, RankRequest):
        return max(len(model.encode(candidate)) for candidate in request.candidates)
    assert isinstance(request, GenerateRequest)
    return request.max_new_tokens


def _settings(
    task: Task, model: Model, queries: list[Query], options: CellOptions
) -> dict[str, Any]:
    """All that decides a row: printed in results.json, checked when a run is resumed."""
    return {
        **task.settings,
        "separator": options.separator if options.num_shots else None,
        "num_shots": options.num_shots,
        "batch_size": options.batch_size,
        "model": model.fingerprint,
        "device": model.device,
        "dtype": model.dtype,
        "data": task.data_fingerprint,
        "support": task.support().fingerprint if options.num_shots else None,
        "queries": fingerprint([query.id for query in queries]),
        "num_queries": len(queries),
        "versions": versions(),
    }


def _resume(
    folder: Path, settings: dict[str, Any], expected: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Rows already in `folder` by id; a torn last line is cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    path, settings_path = folder / "samples.jsonl", folder / "settings.json"
    if not path.exists() or path.stat().st_size == 0:
        write_json(settings_path, settings)
        return {}
    if not settings_path.exists():
        raise UserError(f"{settings_path} is missing beside its rows; remove {folder}")
    before = json.loads(settings_path.read_text(encoding="utf-8"))
    if before != settings:
        changed = [key for key in before | settings if before.get(key) != settings.get(key)]
        raise UserError(
            f"{path} holds rows of other settings ({', '.join(changed)} changed); "
            f"name a new --out or remove {folder}"
        )
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as file:
            file.truncate(whole)
    rows = _whole_rows(data)
    by_id = {row["id"]: row for row in rows}
    if len(by_id) < len(rows) or not by_id.keys() <= set(expected):
        raise UserError(f"{path}: doubled or unknown ids; remove {folder} and run again")
    return by_id


def _whole_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows of a samples.jsonl but a torn last one."""
    lines = data.decode(errors="replace").split("\n")[:-1]  # not splitlines: rows hold U+2028
    return [json.loads(line) for line in lines]


def _zero_shot(
    task: Task, settings: dict[str, Any], ids: list[str], seed_dir: Path
) -> dict[str, float | None]:
    """The k = 0 score on the same queries, which a few-shot score is to be held against.

    Empty where `seed_dir` lacks rows of the same model and task for all of them.
    """
    path, settings_path = seed_dir / "samples.jsonl", seed_dir / "settings.json"
    if not (path.exists() and settings_path.exists()):
        return {}
    before = json.loads(settings_path.read_text(encoding="utf-8"))
    decisive = ("model", "device", "dtype", "data", *task.settings)
    rows = {row["id"]: row for row in _whole_rows(path.read_bytes())}
    if any(before.get(key) != settings[key] for key in decisive) or not rows.keys() >= set(ids):
        return {}
    return {"zero_shot_same_queries": _rounded(task.measure([rows[i] for i in ids]).score)}


def _blind(
    task: Task,
    model: Model,
    prompts: list[Prompt],
    folder: Path,
    settings: dict[str, Any],
    seed: int,
    options: CellOptions,
) -> dict[str, Any] | None:
    """The same prompts with another query's picture; None where the pictures allow no exchange."""
    queries = [prompt.query for prompt in prompts]
    donors = derange(queries, task.gold_class, seed)
    if donors is None:
        return None
    swapped = [
        Prompt(p.shots, with_pictures_of(p.query, donors[p.query.id]), p.separator) for p in prompts
    ]
    label = f"{task.folder} k={options.num_shots} blind"
    rows = collect(
        task,
        model,
        swapped,
        folder / f"seed{seed}" / "blind",
        settings | {"seed": seed, "control": "pictures exchanged"},
        options,
        label,
    )
    return {**_numbers(task.measure(rows), len(rows)), "ms": sum(row["ms"] for row in rows)}


def _numbers(measured: Measured, n: int) -> dict[str, Any]:
    return {"score": _rounded(measured.score), "se": _rounded(measured.se), "n": n}


def _rounded(value: float | None) -> float | None:
    """Four decimals; None where a number has no meaning (JSON has no NaN)."""
    return None if value is None or math.isnan(value) else round(value, 4)


def _deviation(scores: list[float]) -> float:
    return mean_se(scores) * math.sqrt(len(scores))


def _pooled_se(
    rows: dict[int, list[dict[str, Any]]], per_seed: list[dict[str, Any]], task: Task
) -> float:
    """Of the mean over seeds. Seeds share their queries, so queries are the independent unit."""
    if len(per_seed) == 1:
        se = per_seed[0]["se"]
        return math.nan if se is None else se
    return _scale(task) * mean_se(_mean_scores(task, rows))


def _mean_scores(task: Task, rows: dict[int, list[dict[str, Any]]]) -> list[float]:
    """Mean over seeds of each query's score, in query order."""
    runs = [task.row_scores(run) for run in rows.values()]
    return [sum(column) / len(runs) for column in zip(*runs, strict=True)]


def _scale(task: Task) -> float:
    return 100.0 if task.unit == "%" else 1.0


def _verdicts(
    task: Task,
    rows: dict[int, list[dict[str, Any]]],
    score: float,
    se: float,
    baselines: Baselines,
) -> list[dict[str, Any]]:
    """Model against each baseline; paired by query where the baseline has a score for each."""
    verdicts = []
    first = next(iter(rows.values()))
    for name, value in baselines.others.items():
        gap_se = se
        if name in baselines.row_scores:
            other, weights = baselines.row_scores[name], [task.row_weight(row) for row in first]
            gaps = [
                weight * (mine - other[row["id"]])
                for mine, row, weight in zip(_mean_scores(task, rows), first, weights, strict=True)
            ]
            gap_se = _scale(task) * ratio_se(gaps, weights)
        gain = (score - value) * (1 if task.is_higher_better else -1)
        is_clear = abs(gain) > 2 * gap_se  # False where se is NaN
        relation = ("better than" if gain > 0 else "worse than") if is_clear else "level with"
        verdicts.append(
            {
                "baseline": name,
                "relation": relation,
                "difference": _rounded(score - value),
                "se": _rounded(gap_se),
            }
        )
    return verdicts

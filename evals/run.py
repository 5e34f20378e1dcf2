"""A cell of the score table: ask every query, append its row, measure once over all rows."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evals.api import (
    Baselines,
    Model,
    Prompt,
    Query,
    Response,
    Separator,
    Task,
)
from evals.asking import answer_positions, ask
from evals.cell_scores import measure, rounded, score_entry, zero_shot_score
from evals.controls import blinded, permuted, unpictured
from evals.likeness import rank_by_image, rank_by_text
from evals.rows import Row, Share, append, gather, resume
from evals.select import select
from evals.shots import (
    Rank,
    Selection,
    build_prompts,
    check_budget,
    limited,
    num_positions,
)
from mllm import dist
from mllm.command import progress
from mllm.errors import UserError
from mllm.files import fingerprint, write_json

VERSIONED = ("torch", "transformers", "numpy", "pillow", "sentencepiece")
TEXTUAL_SHOTS = 2  # of `0*`: shots without their pictures


@dataclass(frozen=True)
class CellOptions:
    """What a run fixes for one cell.

    Args:
        num_shots: k.
        is_textual: `0*`: two shots whose pictures are removed; k is then 0.
        seeds: Of the shots; without shots only the first is run.
        limit: At most this many queries by id hash; None for all.
        separator: Between shots.
        selection: How shots are chosen.
        batch_size: Requests a batch, in the order of query ids.
        controls: Which of CONTROLS run too (first seed); `own` are the task's.
        share: The batches that this process asks.
        is_measured: Whether this process measures; one that only asks gives no cell back.
    """

    num_shots: int
    is_textual: bool = False
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    separator: Separator = "eos"
    selection: Selection = Selection()  # noqa: RUF009 (frozen)
    batch_size: int = 32
    controls: tuple[str, ...] = ("blind", "permuted", "own")
    share: Share = Share()  # noqa: RUF009 (frozen)
    is_measured: bool = True

    @property
    def shown(self) -> int:
        """Exemplars in a prompt."""
        return TEXTUAL_SHOTS if self.is_textual else self.num_shots

    @property
    def label(self) -> str:
        """k as it is written: `0*` is not `0`."""
        return f"{self.num_shots}*" if self.is_textual else str(self.num_shots)

    @property
    def folder(self) -> str:
        return f"k{self.num_shots}" + ("star" if self.is_textual else "")


def versions() -> dict[str, str]:
    """Versions of what computes an answer."""
    return {name: version(name) for name in VERSIONED}


def run_cell(
    task: Task, model: Model, options: CellOptions, out_dir: Path
) -> dict[str, Any] | None:
    """Runs or resumes one cell and gives its entry of results.json; None if not `is_measured`.

    Rows go to `out_dir/{task}_{split}/k{K}/seed{S}/samples.jsonl`, those of a control to
    `.../seed{S}/{control}/samples.jsonl`.

    Raises:
        UserError: Prompts that do not fit the model, or rows of other settings in `out_dir`.
    """
    queries = [task.query(query_id) for query_id in select(task.ids(), options.limit)]
    if not queries:
        raise UserError(f"{task.folder}: no queries; check --data and --limit")
    seeds = options.seeds if options.shown > 0 else options.seeds[:1]
    rank = _rank(task, model, options, out_dir)
    built = {seed: _prompts(task, queries, options, seed, rank) for seed in seeds}
    changed = _controlled(task, built[seeds[0]], seeds[0], options)
    # All of them before anything is asked: other answers in a control's shots may be longer.
    prompts = {seed: _fitted(task, model, run) for seed, run in built.items()}
    controlled = {name: _fitted(task, model, run) for name, run in changed.items()}
    settings = _settings(task, model, queries, options)
    # Before asking, so that missing data shows.
    baselines = task.baselines(queries, model) if options.is_measured else Baselines()
    folder = out_dir / task.folder / options.folder
    cell = _Cell(task, model, options, settings, folder)
    rows = {seed: cell.collect(prompts[seed], seed) for seed in seeds}
    controls = {name: cell.collect(run, seeds[0], name) for name, run in controlled.items()}
    if not options.is_measured:
        return None
    for seed, found in rows.items():
        if (answers := task.submission(found)) is not None:
            write_json(cell.run_dir(seed) / "submission.json", answers)
    return _summary(cell, out_dir, queries, rows, controls, baselines)


@dataclass(frozen=True)
class _Cell:
    """What every run of a cell has in common: shots of each seed, then the controls."""

    task: Task
    model: Model
    options: CellOptions
    settings: dict[str, Any]
    folder: Path

    def run_dir(self, seed: int, control: str | None = None) -> Path:
        folder = self.folder / f"seed{seed}"
        return folder / control if control else folder

    def collect(
        self, prompts: Sequence[Prompt], seed: int, control: str | None = None
    ) -> list[Row]:
        """All rows of one run in the order of `prompts`, asking only for those not yet on disk.

        Batches are formed over all prompts before any is skipped or dealt out, so that a resumed
        run and another number of ranks ask in the same batches and get the same numbers. A process
        that only asks gets its own rows back.
        """
        task, share = self.task, self.options.share
        folder = self.run_dir(seed, control)
        settings = self.settings | {"seed": seed} | ({"control": control} if control else {})
        ids = [prompt.query.id for prompt in prompts]
        if prompts[0].shots and not control and share.rank == 0:
            shown = {p.query.id: [shot.id for shot in p.shots] for p in prompts}
            write_json(folder / "shots.json", shown)
        done = resume(folder, settings, ids, share)
        size = self.options.batch_size
        batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        mine = [batch for place, batch in enumerate(batches) if share.has(place)]
        label = f"{task.folder} k={self.options.label} {control or f'seed {seed}'}"
        for batch in progress(mine, label):
            if all(prompt.query.id in done for prompt in batch):
                continue
            started = time.perf_counter()
            answers = ask(task, self.model, batch)
            ms = round(1000 * (time.perf_counter() - started) / len(batch), 2)
            new = [
                _row(task, self.model, prompt, responses, ms)
                for prompt, responses in zip(batch, answers, strict=True)
                if prompt.query.id not in done
            ]
            append(share.file(folder), new)
            done |= {row["id"]: row for row in new}
        dist.barrier()
        if not self.options.is_measured:
            return [done[query_id] for query_id in ids if query_id in done]
        return gather(folder, ids)


def _row(task: Task, model: Model, prompt: Prompt, responses: Sequence[Response], ms: float) -> Row:
    pictures = prompt.query.images
    return {
        "id": prompt.query.id,
        "corpus": task.corpus_name,
        "shots": [shot.id for shot in prompt.shots],
        "prompt_sha": prompt.sha(),
        # Standard errors are clustered by it.
        "pictures": _digest(pictures) if pictures else None,
        "n_prompt_tokens": num_positions(prompt, model),
        "n_images": prompt.num_images,
        **task.row(prompt.query, responses),
        "ms": ms,
    }


def _digest(pictures: Sequence[bytes]) -> str:
    return fingerprint([hashlib.sha256(data).hexdigest() for data in pictures])


def _rank(task: Task, model: Model, options: CellOptions, out_dir: Path) -> Rank | None:
    if options.shown == 0 or not options.selection.how.startswith("rices"):
        return None
    support = limited(task.support(), options.selection.support_size)
    if support.own is not None:
        return None  # `build_prompts` refuses
    if options.selection.how == "rices_text":
        return rank_by_text(support)
    return rank_by_image(support, model, out_dir / "features")


def _prompts(
    task: Task, queries: list[Query], options: CellOptions, seed: int, rank: Rank | None
) -> list[Prompt]:
    return build_prompts(
        queries,
        task.support,
        seed=seed,
        task=task.name,
        split=task.split,
        num_shots=options.shown,
        separator=options.separator,
        selection=options.selection,
        rank=rank,
        is_textual=options.is_textual,
    )


def _fitted(task: Task, model: Model, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts as they are asked.

    Raises:
        DoesNotFit: A prompt, its longest answer and what is asked after that exceed the model.
    """
    fitted = [task.fitted(prompt, model) for prompt in prompts]
    later = task.later_positions(model)
    lengths = [answer_positions(task.request(prompt), model) + later for prompt in fitted]
    check_budget(fitted, lengths, model)
    return fitted


def _settings(
    task: Task, model: Model, queries: list[Query], options: CellOptions
) -> dict[str, Any]:
    """All that decides a row: printed in results.json, checked when a run is resumed."""
    shots = (
        options.selection.settings()
        | {"support": limited(task.support(), options.selection.support_size).fingerprint}
        if options.shown
        else {"support": None}
    )
    return {
        **task.settings,
        "separator": options.separator if options.shown else None,
        "num_shots": options.num_shots,
        "is_textual": options.is_textual,
        **shots,
        "batch_size": options.batch_size,
        "model": model.fingerprint,
        "device": model.device,
        "dtype": model.dtype,
        "data": task.data_fingerprint,
        "queries": fingerprint([query.id for query in queries]),
        "num_queries": len(queries),
        "versions": versions(),
    }


# ----------------------------------------------------------------------------------------------
# Controls


def _controlled(
    task: Task, prompts: list[Prompt], seed: int, options: CellOptions
) -> dict[str, list[Prompt]]:
    """The prompts of each control that has a meaning for this cell."""
    runs: dict[str, list[Prompt] | None] = {}
    if task.has_images and "blind" in options.controls:
        runs["blind"] = blinded(prompts, task.gold_class, seed)
    if task.has_images and "no_picture" in options.controls:
        runs["no_picture"] = unpictured(prompts)
    if options.shown > 0 and "permuted" in options.controls:
        runs["permuted"] = permuted(prompts, task, seed)
    if "own" in options.controls:
        for name, change in task.controls().items():
            runs[name] = [change(prompt) for prompt in prompts]
    return {name: changed for name, changed in runs.items() if changed is not None}


def _summary(
    cell: _Cell,
    out_dir: Path,
    queries: list[Query],
    rows: dict[int, list[Row]],
    controls: dict[str, list[Row]],
    baselines: Baselines,
) -> dict[str, Any]:
    task, options, seeds = cell.task, cell.options, list(rows)
    measured = {
        name: {**measure(task, found), "ms": sum(row["ms"] for row in found)}
        for name, found in controls.items()
    }
    samples = {
        seed: str((cell.run_dir(seed) / "samples.jsonl").relative_to(out_dir)) for seed in seeds
    }
    asked_ms = sum(row["ms"] for seed in seeds for row in rows[seed])
    asked_ms += sum(row["ms"] for found in controls.values() for row in found)
    scores = score_entry(task, rows, samples, baselines)
    # Too long for results.json; `--rescore` pairs with them.
    write_json(cell.folder / "baselines.json", baselines.row_scores)
    if options.shown > 0:
        ids = [query.id for query in queries]
        seed_dir = cell.folder.parent / "k0" / f"seed{seeds[0]}"
        scores["extra"] |= zero_shot_score(task, cell.settings, ids, seed_dir)
    return {
        "suite": task.name,
        "split": task.split,
        "num_shots": options.num_shots,
        "shots": options.label,
        "metric": task.metric,
        "unit": task.unit,
        "is_higher_better": task.is_higher_better,
        **scores,
        "n": len(queries),
        "chance": rounded(baselines.chance),
        "majority": rounded(baselines.majority),
        "baselines": {name: rounded(value) for name, value in baselines.others.items()},
        "baseline_notes": baselines.notes,
        "blind": measured.pop("blind", None),
        "controls": measured,
        "left_out": task.problems(),
        "seconds": round(asked_ms / 1000, 1),
        "settings": cell.settings,
    }

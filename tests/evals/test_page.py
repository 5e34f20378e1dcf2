"""The page of an evaluation, and scores over checkpoints."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from corpora.document import Document, ImageSegment, TextSegment
from evals import checkpoints
from evals.api import CandidateScore, Model, Prompt, RankRequest, Task
from evals.command import main
from evals.page import write_page
from evals.page.examples import Prompter, drawn, worst
from evals.page.prompts import Album, example
from evals.rows import whole_rows
from evals.run import CellOptions, run_cell, versions
from evals.tasks.caption import Caption
from evals.tasks.easy_vqa import EasyVqa
from evals.tasks.naming import Naming
from evals.tasks.text_loss import TextLoss
from mllm.errors import UserError
from mllm.files import sha256_file, write_json
from mllm.report.score_curves import by_shots, k_lines, step_curves
from mllm.report.verdict import verdict
from tests.evals.conftest import COLOURS, FakeModel, png, write
from tests.test_export import run_dir, tiny  # noqa: F401 (fixtures)
from tests.test_report import HOSTILE, Tags


class Erring(FakeModel):
    """Names by chance that differs with the prompt, so that wrong answers have many margins."""

    def loglikelihood(self, requests: Sequence[RankRequest]) -> list[list[CandidateScore]]:
        rows = super().loglikelihood(requests)
        for request, row in zip(requests, rows, strict=True):
            noise = hashlib.sha256(request.prompt.sha().encode()).digest()
            row[:] = [replace(s, ll=s.ll / 9 - noise[i] / 40) for i, s in enumerate(row)]
        return rows


def run(tasks: list[tuple[Task, tuple[str, ...]]], out: Path) -> SimpleNamespace:
    """Cells of an erring model, as `evaluate` leaves them."""
    cells = []
    for task, labels in tasks:
        for label in labels:
            options = CellOptions(
                num_shots=int(label.rstrip("*")),
                is_textual="*" in label,
                seeds=(0, 1),
                limit=None if label == "0" else 12,
                batch_size=8,
            )
            cells.append(run_cell(task, Erring(), options, out))
    results = {
        "model": "runs/x/export",
        "model_fingerprint": "c0ffee",
        "versions": versions(),
        "left_out": ["hellaswag: its data is nowhere named; pass --data"],
        "cells": cells,
    }
    by_key = {(task.name, task.split): task for task, _ in tasks}
    return SimpleNamespace(out=out, cells=cells, results=results, tasks=by_key)


@pytest.fixture(scope="module")
def ran(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    tasks: list[tuple[Task, tuple[str, ...]]] = [
        (Naming(data_dir), ("0", "0*", "2", "4")),
        (Caption(data_dir), ("0",)),
        (EasyVqa(data_dir), ("0", "2")),
        (TextLoss(data_dir), ("0",)),
    ]
    made = run(tasks, tmp_path_factory.mktemp("page"))
    size = write_page(made.out / "report.html", made.out, made.results, made.tasks)
    made.page = (made.out / "report.html").read_text(encoding="utf-8")
    assert size == len(made.page.encode()) < 10_000_000
    return made


def rows_of(ran: SimpleNamespace, cell: dict[str, Any]) -> list[dict[str, Any]]:
    return whole_rows(ran.out / cell["per_seed"][0]["samples"])


def naming(ran: SimpleNamespace, shots: str) -> dict[str, Any]:
    return next(c for c in ran.cells if (c["suite"], c["shots"]) == ("naming", shots))


def test_every_cell_is_on_the_page_with_what_it_is_held_against(ran: SimpleNamespace):
    seen = Tags(ran.page).visible
    for cell in ran.cells:
        digits = 2 if cell["suite"] == "text_loss" else 1
        held = [cell["score"], cell["chance"], cell["majority"], *cell["baselines"].values()]
        held += [c["score"] for c in (cell["blind"], *cell["controls"].values()) if c]
        for value in held:
            assert value is None or f"{value:,.{digits}f}" in seen, (cell["suite"], value)
        assert f"n = {cell['n']}" in seen and verdict(cell).text in seen
        assert f"{cell['suite']} ({cell['split']}) k={cell['shots']}" in seen
    for expected in (
        "0*",
        "1 tasks whose data is nowhere named",
        "c0ffee",
        "pillow",
        "capped",
        "other answers",
    ):
        assert expected in seen, expected


def test_the_page_is_self_contained_and_its_ids_are_its_own(ran: SimpleNamespace):
    elements = Tags(ran.page).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "base"}
    for _, attributes in elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/jpeg;base64,", "#"))
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_worst_errors_are_those_of_brute_force(ran: SimpleNamespace):
    cell = naming(ran, "0")
    rows = rows_of(ran, cell)
    margins = {}
    for row in rows:
        lls = {c["text"].strip(): c["ll"] for c in row["candidates"]}
        if max(lls, key=lls.__getitem__) != row["gold"]:
            margins[row["id"]] = max(lls.values()) - lls[row["gold"]]
    assert len(margins) > 6  # else there was nothing to choose from
    wanted = sorted(margins, key=lambda key: (-margins[key], key))[:4]
    task = ran.tasks["naming", "final"]
    assert [row["id"] for row, _ in worst(cell, rows, task)] == wanted
    assert f"above the right one by {margins[wanted[0]]:.2f}" in Tags(ran.page).visible
    # The summed score is the cell's norm; by another one others stand first.
    other = cell | {"settings": cell["settings"] | {"norm": "char"}}
    assert [margin for _, margin in worst(other, rows, task)] != [margins[key] for key in wanted]


def test_the_worst_of_answers_and_of_losses(ran: SimpleNamespace):
    vqa = next(c for c in ran.cells if c["suite"] == "easy_vqa")
    task = ran.tasks["easy_vqa", "test"]
    rows = [row | {"score": float(i % 3 == 0)} for i, row in enumerate(rows_of(ran, vqa))]
    wrong = sorted(row["id"] for row in rows if not row["score"])
    assert [row["id"] for row, _ in worst(vqa, rows[::-1], task)] == wrong[:4]
    assert worst(vqa, [row | {"score": 1.0} for row in rows], task) == []
    loss = next(c for c in ran.cells if c["suite"] == "text_loss")
    task = ran.tasks["text_loss", loss["split"]]
    rows = [row | {"score": float(i)} for i, row in enumerate(rows_of(ran, loss))]
    assert [score for _, score in worst(loss, rows, task)][:2] == [len(rows) - 1, len(rows) - 2]


def test_the_draw_knows_no_score(ran: SimpleNamespace):
    rows = rows_of(ran, naming(ran, "0"))
    keys = [row["id"] for row in drawn(rows, 0)]
    flipped = [row | {"score": 1 - row["score"]} for row in rows[::-1]]
    assert [row["id"] for row in drawn(flipped, 0)] == keys
    assert [row["id"] for row in drawn(rows, 1)] != keys


@pytest.mark.parametrize("shots", ["0", "0*", "4"])
def test_prompts_are_made_again_as_they_were_asked(ran: SimpleNamespace, shots: str):
    cell = naming(ran, shots)
    prompter = Prompter(ran.tasks["naming", "final"], cell["settings"])
    for row in rows_of(ran, cell):
        prompt = prompter.prompt(row)
        assert prompt is not None and prompt.sha() == row["prompt_sha"]
        assert [shot.id for shot in prompt.shots] == row["shots"]
        assert prompt.num_images == row["n_images"]
        # Other data than was asked about is never shown as if it had been.
        assert prompter.prompt(row | {"prompt_sha": "0" * 16}) is None
    changed = Prompter(prompter.task, cell["settings"] | {"data": "other"})
    assert changed.prompt(row) is None
    if shots == "4":
        changed = Prompter(prompter.task, cell["settings"] | {"support": "other"})
        assert changed.prompt(row) is None


def test_what_a_task_puts_before_every_prompt_is_on_the_page(data_dir: Path, tmp_path: Path):
    class Instructed(Naming):
        def fitted(self, prompt: Prompt, model: Model) -> Prompt:
            told = (TextSegment("Name it."), *prompt.query.segments)
            return prompt.with_query(told)

    cell = run_cell(Instructed(data_dir), FakeModel(), CellOptions(num_shots=0, limit=3), tmp_path)
    assert cell is not None
    (row, *_) = whole_rows(tmp_path / cell["per_seed"][0]["samples"])
    prompt = Prompter(Instructed(data_dir), cell["settings"]).prompt(row)
    assert prompt is not None and prompt.query.segments[0] == TextSegment("Name it.")
    assert Prompter(Naming(data_dir), cell["settings"]).prompt(row) is None


def test_a_card_shows_shots_with_pictures_and_texts_in_order(ran: SimpleNamespace):
    cell, task = naming(ran, "2"), ran.tasks["naming", "final"]
    row = rows_of(ran, cell)[0]
    prompt = Prompter(task, cell["settings"]).prompt(row)
    assert prompt is not None
    card = example(cell, row, prompt, task, Album(10**6))
    seen = Tags(card).visible
    assert card.count("<img") == 3 and seen.count("</s>") == 2
    said = [f"An image of {shot.answer.strip()}" for shot in prompt.shots]
    assert seen.index(said[0]) < seen.index(said[1]) < seen.index(f"{row['gold']} ✓")
    # A page that is full says so in the place of a picture.
    full = example(cell, row, prompt, task, Album(0))
    assert "<img" not in full and full.count("the page is full") == 3


def test_curves_hold_the_cells_numbers(ran: SimpleNamespace):
    cells = by_shots([cell for cell in reversed(ran.cells) if cell["suite"] == "naming"])
    assert [cell["shots"] for cell in cells] == ["0", "0*", "2", "4"]
    zero, textual, two, four = cells
    lines = {line.label: line for line in k_lines(cells)}
    curve = lines["with shots"]
    assert curve.points == ((2, two["score"]), (3, four["score"]))
    assert curve.errors == (two["se"], four["se"])
    assert curve.spreads == (two["seed_sd"], four["seed_sd"])
    assert lines["no shots"].points == ((0, zero["score"]),)
    assert lines["0*: shots without pictures"].points == ((1, textual["score"]),)
    same = two["extra"]["zero_shot_same_queries"]
    assert lines["no shots, on their queries"].points == ((0, same),)
    permuted = [cell["controls"]["permuted"]["score"] for cell in (two, four)]
    assert [y for _, y in lines["other answers in shots"].points] == permuted
    assert [y for _, y in lines["wrong picture"].points] == [c["blind"]["score"] for c in cells]
    assert [x for x, _ in lines["each seed"].points] == [2, 2, 3, 3]
    assert ran.page.count(">shots<") == 2  # naming and easy_vqa; one number of shots is no curve


def test_without_data_rows_stand_without_prompts(ran: SimpleNamespace, tmp_path: Path):
    write_page(tmp_path / "bare.html", ran.out, ran.results, {})
    bare = (tmp_path / "bare.html").read_text(encoding="utf-8")
    seen = Tags(bare).visible
    assert "<img" not in bare and "could not be made again" in seen and "Shots: train" in seen


def test_no_text_of_data_becomes_markup(ran: SimpleNamespace, tmp_path: Path):
    names = list(COLOURS)

    def document(i: int, kind: str) -> Document:
        meta = {"answer": f"{names[i]} {HOSTILE}", "captions": [f"{names[i]} {HOSTILE}"] * 2}
        meta["distractors"] = [f"{names[(i + step) % 8]} {HOSTILE}" for step in range(1, 5)]
        return Document(f"{kind}{i}<b>&", (ImageSegment(png(COLOURS[names[i]], mark=i)),), meta)

    write(tmp_path / "eval/naming_final", [document(i, "q") for i in range(8)])
    write(tmp_path / "eval/naming_support", [document(i, "s") for i in range(8)])
    made = run([(Naming(tmp_path), ("0", "1"))], tmp_path / "out")
    made.results |= {"model": HOSTILE, "left_out": [HOSTILE], "versions": {HOSTILE: HOSTILE}}
    made.cells[0]["controls"][HOSTILE] = {"score": 1.0, "se": 1.0, "n": 8}
    write_page(tmp_path / "h.html", made.out, made.results, made.tasks, [(1, made.cells)])
    text = (tmp_path / "h.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert {tag for tag, _ in tags.elements} <= {tag for tag, _ in Tags(ran.page).elements}
    assert not [name for _, attrs in tags.elements for name in attrs if name.startswith("on")]
    assert tags.visible.count("<script>alert(1)</script>") > 25 and "<script" not in text
    assert "<b>&" in tags.visible


def test_scores_over_training_have_a_line_for_each_number_of_shots(ran: SimpleNamespace):
    later = [cell | {"score": cell["score"] * 0.9} for cell in ran.cells]
    drawing = step_curves([(100, ran.cells), (200, later)])
    assert drawing is not None and drawing.count("<svg") == 4
    assert "training step" in drawing and "k = 0*" in drawing and "wrong picture, k = 4" in drawing
    assert re.search(r"stroke-dasharray", drawing)  # controls and chance


def second_checkpoint(run_dir: Path) -> None:  # noqa: F811
    """A later checkpoint of other weights beside the one there."""
    first = run_dir / "checkpoints/step-00000042"
    later = run_dir / "checkpoints/step-00000084"
    shutil.copytree(first, later)
    weights = load_file(later / "model.safetensors")
    noise = torch.Generator().manual_seed(1)
    changed = {k: v + 0.05 * torch.randn(v.shape, generator=noise) for k, v in weights.items()}
    save_file(changed, later / "model.safetensors")
    manifest = json.loads((later / "manifest.json").read_text())
    size = (later / "model.safetensors").stat().st_size
    sha = sha256_file(later / "model.safetensors")
    write_json(
        later / "manifest.json", manifest | {"model.safetensors": {"bytes": size, "sha256": sha}}
    )


def test_every_checkpoint_is_asked_once(
    run_dir: Path,  # noqa: F811
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "over"
    command = ["naming", "--checkpoints", str(run_dir), "--data", str(data_dir), "--limit", "6"]
    command += ["--out", str(out)]
    assert main([*command, "--no-report"]) == 0
    assert not (out / "report.html").exists()
    first = json.loads((out / "checkpoints.json").read_text())
    assert [step["step"] for step in first["steps"]] == [42]
    assert not (out / "checkpoints/step-00000042/export").exists()

    second_checkpoint(run_dir)
    exported = []
    original = checkpoints.export
    monkeypatch.setattr(checkpoints, "export", lambda *a: (exported.append(a[0]), original(*a)))
    assert main([*command, "--keep"]) == 0
    assert [path.name for path in exported] == ["step-00000084"]
    assert (out / "checkpoints/step-00000084/export/config.json").is_file()
    content = json.loads((out / "checkpoints.json").read_text())
    assert content["steps"][0] == first["steps"][0]
    before, after = (step["results"]["cells"][0] for step in content["steps"])
    assert before["settings"]["model"] != after["settings"]["model"]
    printed = capsys.readouterr().out
    assert "Scores over training" in printed and "84" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "training step" in Tags(page).visible and page.count("<img") > 5
    # Asked in another way, both are asked again, and rows of other settings are refused.
    with pytest.raises(UserError, match="other settings"):
        main([*command, "--limit", "3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["naming", "--checkpoints", ".", "--model", ".", "--out", "o"], "exclude each other"),
        (["naming", "--checkpoints", "absent", "--out", "o"], "absent: no such folder"),
        (["naming", "--model", ".", "--keep", "--out", "o"], "--keep"),
        (["naming", "--checkpoints", ".", "--out", "o", "--data", "DATA"], "no checkpoint there"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main([str(data_dir) if part == "DATA" else part for part in arguments])
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


def test_workers_are_told_of_the_export_and_not_of_the_run():
    argv = ["naming", "--checkpoints", "r", "--out=o", "--keep", "--limit", "6"]
    assert checkpoints.without(argv, "--checkpoints", "--out") == ["naming", "--limit", "6"]

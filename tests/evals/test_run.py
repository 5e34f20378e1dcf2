import json
from dataclasses import replace
from pathlib import Path

import pytest

from evals.api import Baselines, Prompt
from evals.cell_scores import verdicts
from evals.options import TaskOptions
from evals.run import CellOptions, run_cell
from evals.select import by_hash, select
from evals.table import verdict_lines
from evals.tasks import LOCAL_TASKS
from evals.tasks.caption import Caption
from evals.tasks.easy_vqa import EasyVqa
from evals.tasks.local import LOCAL_SETS
from evals.tasks.naming import Naming
from evals.tasks.text_loss import TextLoss
from evals.uncertainty import mean_se, ratio_se
from mllm.errors import UserError
from tests.evals.conftest import FakeModel

OPTIONS = CellOptions(num_shots=0, batch_size=5)


def rows_of(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    return [{key: value for key, value in row.items() if key != "ms"} for row in rows]


def test_a_model_that_sees_scores_all_and_its_blind_control_nothing(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    cell = run_cell(Naming(data_dir), fake, OPTIONS, tmp_path)
    assert (cell["score"], cell["n"], cell["chance"]) == (100.0, 24, 20.0)
    # The donor's colour is among the candidates of some queries, never as the right one.
    assert cell["blind"]["score"] < 25
    assert cell["verdicts"][0]["relation"] == "level with"  # the neighbour is right everywhere too
    row = rows_of(tmp_path / "naming_final/k0/seed0/samples.jsonl")[0]
    assert row["corpus"] == "naming_final" and row["n_images"] == 1 and len(row["candidates"]) == 5
    assert set(row["candidates"][0]) == {"text", "ll", "n_tok", "n_char", "n_byte", "ll_uncond"}
    assert row["n_prompt_tokens"] == 1 + 6 + len("An image of")


def test_other_tasks_score_what_they_should(data_dir: Path, fake: FakeModel, tmp_path: Path):
    vqa = run_cell(EasyVqa(data_dir), fake, OPTIONS, tmp_path)
    # A donor is another picture, though at times one of the same colour.
    assert vqa["score"] == 100.0 and vqa["blind"]["score"] < 30
    assert vqa["verdicts"][0]["relation"] == "better than"
    caption = run_cell(Caption(data_dir), fake, OPTIONS, tmp_path)
    assert caption["score"] > 100 and caption["blind"]["score"] < caption["score"] / 4
    assert caption["extra"]["names_the_picture"] == 100.0
    text = run_cell(TextLoss(data_dir), fake, OPTIONS, tmp_path)
    assert text["score"] == pytest.approx(1.5) and text["blind"] is None
    assert text["extra"]["bits_per_byte"] == pytest.approx(1.5 * 1.4427, abs=1e-3)
    assert text["verdicts"][0]["relation"] == "better than"  # lower, and lower is better
    assert len(verdict_lines([vqa, caption, text])) == 5


def test_every_seed_of_few_shot_has_its_own_rows(data_dir: Path, fake: FakeModel, tmp_path: Path):
    options = replace(OPTIONS, num_shots=2, seeds=(0, 1), limit=10)
    cell = run_cell(Naming(data_dir), fake, options, tmp_path)
    assert [entry["samples"] for entry in cell["per_seed"]] == [
        f"naming_final/k2/seed{seed}/samples.jsonl" for seed in (0, 1)
    ]
    rows = [rows_of(tmp_path / entry["samples"]) for entry in cell["per_seed"]]
    assert [row["id"] for row in rows[0]] == [row["id"] for row in rows[1]]
    assert rows[0][0]["shots"] != rows[1][0]["shots"]
    assert cell["n"] == 10 and rows[0][0]["n_images"] == 3
    blind = rows_of(tmp_path / "naming_final/k2/seed0/blind/samples.jsonl")
    assert [row["shots"] for row in blind] == [row["shots"] for row in rows[0]]
    assert all(b["prompt_sha"] != r["prompt_sha"] for b, r in zip(blind, rows[0], strict=True))


def test_a_killed_run_resumes_to_the_same_bytes_in_the_same_batches(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    options = replace(OPTIONS, controls=())
    whole = run_cell(Naming(data_dir), fake, options, tmp_path / "whole")
    path = "naming_final/k0/seed0/samples.jsonl"
    run_cell(Naming(data_dir), FakeModel(), options, tmp_path / "cut")
    lines = (tmp_path / "cut" / path).read_bytes().splitlines(keepends=True)
    # Killed within the second batch, in the middle of a line.
    (tmp_path / "cut" / path).write_bytes(b"".join(lines[:7]) + lines[7][:20])
    again = FakeModel()
    resumed = run_cell(Naming(data_dir), again, options, tmp_path / "cut")
    assert again.batches == fake.batches[1:]  # the second batch whole, none before it
    assert rows_of(tmp_path / "cut" / path) == rows_of(tmp_path / "whole" / path)
    for cell in (whole, resumed):
        cell.pop("seconds")
    assert resumed == whole
    finished = FakeModel()
    run_cell(Naming(data_dir), finished, options, tmp_path / "cut")
    assert finished.asked == []


def test_rows_of_other_settings_are_refused(data_dir: Path, fake: FakeModel, tmp_path: Path):
    run_cell(Naming(data_dir), fake, OPTIONS, tmp_path)
    other = FakeModel()
    other.fingerprint = "retrained"
    with pytest.raises(UserError, match=r"other settings \(model changed\).*--out"):
        run_cell(Naming(data_dir), other, OPTIONS, tmp_path)
    with pytest.raises(UserError, match="queries, num_queries changed"):
        run_cell(Naming(data_dir), fake, replace(OPTIONS, limit=7), tmp_path)


def test_rows_without_their_settings_are_refused(data_dir: Path, fake: FakeModel, tmp_path: Path):
    run_cell(Naming(data_dir), fake, OPTIONS, tmp_path)
    (tmp_path / "naming_final/k0/seed0/settings.json").unlink()
    with pytest.raises(UserError, match=r"settings\.json is missing") as caught:
        run_cell(Naming(data_dir), fake, OPTIONS, tmp_path)
    assert "\n" not in str(caught.value)


def test_few_shot_says_what_no_shots_score_on_the_same_queries(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    few = replace(OPTIONS, num_shots=2, limit=10)
    alone = run_cell(Naming(data_dir), fake, few, tmp_path / "alone")
    assert "zero_shot_same_queries" not in alone["extra"]
    run_cell(Naming(data_dir), fake, OPTIONS, tmp_path)
    path = tmp_path / "naming_final/k0/seed0/samples.jsonl"
    rows = rows_of(path)
    few_ids = set(select([row["id"] for row in rows], 10))
    for row in rows:  # wrong wherever few-shot does not ask
        for candidate in row["candidates"]:
            candidate["ll"] *= 1 if row["id"] in few_ids else -1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cell = run_cell(Naming(data_dir), fake, few, tmp_path)
    assert cell["extra"]["zero_shot_same_queries"] == 100.0
    assert any("k=0 on the same queries: 100.0" in line for line in verdict_lines([cell]))
    other = FakeModel()
    other.fingerprint = "retrained"
    cell = run_cell(Naming(data_dir), other, replace(few, num_shots=4), tmp_path)
    assert "zero_shot_same_queries" not in cell["extra"]


def test_gaps_are_paired_and_each_has_its_own_error(data_dir: Path, fake: FakeModel):
    task = EasyVqa(data_dir)
    rows = {0: [{"id": str(i), "score": float(i % 2)} for i in range(10)]}
    flat = {str(i): 0.0 for i in range(10)}
    same = {str(i): float(i % 2) for i in range(10)}
    made = Baselines(others={"same": 50.0, "unpaired": 50.0, "flat": 0.0})
    made = replace(made, row_scores={"same": same, "flat": flat})
    found = {v["baseline"]: v["se"] for v in verdicts(task, rows, 50.0, 7.0, made)}
    assert found["same"] == 0.0 and found["unpaired"] == 7.0
    error = 100 * mean_se([float(i % 2) for i in range(10)])
    assert found["flat"] == pytest.approx(error, abs=1e-4)


def test_the_gap_of_a_loss_weighs_documents_by_tokens(data_dir: Path):
    rows = {0: [{"id": "a", "score": 2.0, "n_tok": 10}, {"id": "b", "score": 3.0, "n_tok": 90}]}
    made = Baselines(others={"unigram": 4.0}, row_scores={"unigram": {"a": 4.0, "b": 4.0}})
    (verdict,) = verdicts(TextLoss(data_dir), rows, 2.9, 1.0, made)
    assert verdict["se"] == pytest.approx(ratio_se([-20.0, -90.0], [10, 90]), abs=1e-4)


def test_the_gap_of_captions_is_paired_by_picture(data_dir: Path):
    """Where both gave the same captions nothing is left to vary, however good these are."""
    task = Caption(data_dir)
    said = {"a": "a red square", "b": "a dog", "c": "a blue square"}
    wanted = {"a": "a red square", "b": "a green square", "c": "the blue one"}
    rows = [{"id": i, "answer": said[i], "references": [wanted[i]], "score": None} for i in said]
    scores = task.row_scores(rows)
    assert len(set(scores)) == 3
    made = Baselines(
        others={"twin": 1.0}, row_scores={"twin": dict(zip(said, scores, strict=True))}
    )
    (verdict,) = verdicts(task, {0: rows}, 1.0, 9.0, made)
    assert verdict["se"] == 0.0 and verdict["relation"] == "level with"


def test_a_doubled_row_is_refused(data_dir: Path, fake: FakeModel, tmp_path: Path):
    run_cell(Naming(data_dir), fake, OPTIONS, tmp_path)
    path = tmp_path / "naming_final/k0/seed0/samples.jsonl"
    path.write_text(path.read_text() + path.read_text().split("\n")[0] + "\n")
    with pytest.raises(UserError, match="doubled"):
        run_cell(Naming(data_dir), fake, OPTIONS, tmp_path)


def test_too_many_shots_are_refused_before_anything_is_asked(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    with pytest.raises(UserError, match=r"--shots 8 does not fit.*9 images x \(4 \+ 2\)"):
        run_cell(Naming(data_dir), fake, replace(OPTIONS, num_shots=8), tmp_path)
    assert fake.asked == [] and not any(tmp_path.iterdir())


def test_a_control_that_does_not_fit_is_refused_before_anything_is_asked(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    class Wordy(Naming):
        def permuted(self, prompt: Prompt, key: str) -> Prompt:
            shots = tuple(replace(shot, answer=" a very long name" * 9) for shot in prompt.shots)
            return replace(prompt, shots=shots)

    options = replace(OPTIONS, num_shots=2, limit=6)
    with pytest.raises(UserError, match="--shots 2 does not fit"):
        run_cell(Wordy(data_dir), fake, options, tmp_path)
    assert fake.asked == [] and not any(tmp_path.iterdir())
    run_cell(Wordy(data_dir), fake, replace(options, controls=("blind",)), tmp_path)


def test_a_smaller_limit_takes_a_subset():
    ids = [f"id{i}" for i in range(100)]
    assert set(select(ids, 10)) < set(select(ids, 30))
    assert select(reversed(ids), 30) == select(ids, 30) == sorted(by_hash(ids)[:30])
    assert select(ids, None) == sorted(ids)


def test_all_tasks_can_be_made_and_say_their_settings(data_dir: Path):
    for name in LOCAL_TASKS.keys() - LOCAL_SETS.keys():
        task = LOCAL_TASKS[name].make(data_dir, TaskOptions(split="development"))
        assert task.name == name and task.settings and task.ids()

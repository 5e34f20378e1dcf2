"""Rows of one rank, of several, cut and gathered."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from evals.command import main
from evals.rows import Share, append, gather, resume, whole_rows
from evals.run import CellOptions, run_cell
from evals.tasks.easy_vqa import EasyVqa
from evals.tasks.naming import Naming
from mllm.errors import UserError
from tests.evals.conftest import FakeModel
from tests.evals.test_exported import export  # noqa: F401 (a fixture)
from tests.evals.test_run import rows_of

OPTIONS = CellOptions(num_shots=2, batch_size=5, limit=23)  # an odd number of queries
PATH = "naming_final/k2/seed0/samples.jsonl"


@pytest.mark.parametrize("size", [2, 3])
def test_several_ranks_leave_what_one_does(
    size: int, data_dir: Path, fake: FakeModel, tmp_path: Path
):
    alone = run_cell(Naming(data_dir), fake, OPTIONS, tmp_path / "alone")
    models = [FakeModel() for _ in range(size)]
    for rank, model in enumerate(models):
        options = replace(OPTIONS, share=Share(rank, size), is_measured=False)
        assert run_cell(Naming(data_dir), model, options, tmp_path / "together") is None
    last = FakeModel()
    together = run_cell(Naming(data_dir), last, OPTIONS, tmp_path / "together")
    assert last.asked == []
    batches = [batch for model in models for batch in model.batches]
    assert sorted(batches) == sorted(fake.batches)  # the same batches, each asked once
    assert rows_of(tmp_path / "together" / PATH) == rows_of(tmp_path / "alone" / PATH)
    assert not list((tmp_path / "together").rglob("samples.part-*"))
    for cell in (alone, together):
        cell.pop("seconds")
        for numbers in (cell["blind"], *cell["controls"].values()):
            numbers.pop("ms")
    assert together == alone


def test_a_cut_run_goes_on_with_another_number_of_ranks(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    run_cell(Naming(data_dir), fake, OPTIONS, tmp_path / "alone")
    task = Naming(data_dir)
    options = replace(OPTIONS, controls=())
    first = replace(options, share=Share(0, 2), is_measured=False)
    run_cell(task, FakeModel(), first, tmp_path / "cut")
    part = tmp_path / "cut" / Path(PATH).with_name("samples.part-0-of-2.jsonl")
    part.write_bytes(part.read_bytes()[:-7])  # killed within a line
    again = FakeModel()
    run_cell(task, again, options, tmp_path / "cut")
    assert rows_of(tmp_path / "cut" / PATH) == rows_of(tmp_path / "alone" / PATH)
    assert len(again.batches) == 3  # two of the other rank, and the one that was cut


def test_a_missing_row_is_an_error_and_never_a_smaller_n(tmp_path: Path):
    resume(tmp_path, {"a": 1}, ["x", "y"], Share())
    append(tmp_path / "samples.jsonl", [{"id": "x"}])
    with pytest.raises(UserError, match="1 of 2 rows are missing, the first 'y'"):
        gather(tmp_path, ["x", "y"])
    append(tmp_path / "samples.jsonl", [{"id": "z"}])
    with pytest.raises(UserError, match="doubled or unknown"):
        gather(tmp_path, ["x", "y"])


def test_rows_keep_every_line_separator(tmp_path: Path):
    path = tmp_path / "samples.jsonl"
    rows = [{"id": "x", "raw": "a b\vc\x85d\r\n"}, {"id": "y", "raw": "\ud800"}]
    append(path, rows)
    assert whole_rows(path) == rows
    path.write_text('{"id": "x"}\nnot a row\n')
    with pytest.raises(UserError, match="line 2: no row"):
        whole_rows(path)


def test_a_full_disk_leaves_whole_rows_and_one_line(tmp_path: Path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    append(path, [{"id": "x"}])
    before = path.read_bytes()
    real = open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(name, mode="r", **more):
        file = real(name, mode, **more)
        return Full(file) if mode == "ab" else file

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(UserError, match=r"samples.jsonl: cannot be written .No space left"):
        append(path, [{"id": "y"}])
    assert path.read_bytes() == before


def test_permuted_shots_keep_their_pictures_and_lose_their_answers(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    cell = run_cell(EasyVqa(data_dir), fake, replace(OPTIONS, num_shots=2, limit=12), tmp_path)
    folder = tmp_path / "easy_vqa_test/k2/seed0"
    shown, permuted = rows_of(folder / "samples.jsonl"), rows_of(folder / "permuted/samples.jsonl")
    assert [row["shots"] for row in permuted] == [row["shots"] for row in shown]
    assert all(
        one["prompt_sha"] != other["prompt_sha"] for one, other in zip(shown, permuted, strict=True)
    )
    # This model answers by the query's picture: it does not mind.
    assert cell["controls"]["permuted"]["score"] == cell["score"]
    manifest = json.loads((folder / "shots.json").read_text())
    assert manifest == {row["id"]: row["shots"] for row in shown}


def test_rescoring_needs_no_model_and_changes_nothing(
    export: SimpleNamespace,  # noqa: F811
    data_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    where = ["--data", str(data_dir), "--out", str(tmp_path)]
    asked = ["naming", "caption", "--model", str(export.folder), "--shots", "0,2", "--limit", "5"]
    assert main([*asked, *where, "--controls", "blind,no_picture,permuted", "--json"]) == 0
    before = json.loads(capfd.readouterr().out)
    assert main(["naming", "caption", "--rescore", *where, "--json"]) == 0
    after = json.loads(capfd.readouterr().out)
    assert after == before
    # A row whose answer was changed by hand shows.
    path = tmp_path / before["cells"][0]["per_seed"][0]["samples"]
    rows = whole_rows(path)
    for row in rows:
        row["gold_index"] = 1 - min(row["gold_index"], 1)
        for place, candidate in enumerate(row["candidates"]):
            candidate["ll"] = -1.0 if place == row["gold_index"] else -99.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["naming", "--rescore", *where, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["cells"][0]["score"] == 100.0
    path.write_text("")
    with pytest.raises(UserError, match=r"has 0 rows and results.json says 5"):
        main(["naming", "--rescore", *where])


def test_workers_and_ranks_give_the_results_of_one_process(
    export: SimpleNamespace,  # noqa: F811
    data_dir: Path,
    tmp_path: Path,
):
    """Real processes: `--workers 2`, and two ranks of torchrun with a process group."""
    base = ["eval", "naming", "easy_vqa", "--model", str(export.folder), "--data", str(data_dir)]
    base += ["--shots", "0,2", "--seeds", "0,1", "--limit", "9", "--batch-size", "2", "--json"]
    launches = {
        "one": [sys.executable, "-m", "mllm.cli", *base],
        "workers": [sys.executable, "-m", "mllm.cli", *base, "--workers", "2"],
        "ranks": [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "mllm.cli", *base),
        ],
    }
    found = {}
    for name, command in launches.items():
        out = tmp_path / name
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = json.loads(done.stdout)
        assert not list(out.rglob("samples.part-*"))
    for name in ("workers", "ranks"):
        for mine, other in zip(found["one"]["cells"], found[name]["cells"], strict=True):
            assert (mine["score"], mine["se"], mine["extra"]) == (
                *(other["score"], other["se"], other["extra"]),
            )
            for entry in mine["per_seed"]:
                rows, others = (rows_of(tmp_path / n / entry["samples"]) for n in ("one", name))
                assert [(r["id"], r["answer"]) for r in rows] == [
                    (r["id"], r["answer"]) for r in others
                ]
                for row, twin in zip(rows, others, strict=True):
                    for a, b in zip(row["candidates"] or [], twin["candidates"] or [], strict=True):
                        assert a["ll"] == pytest.approx(b["ll"], abs=1e-5)

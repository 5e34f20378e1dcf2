import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from evals.command import main
from evals.table import left_out_lines
from evals.tasks import LOCAL_TASKS, NOWHERE_NAMED, suite_cells
from evals.tasks.local import LOCAL_SETS
from mllm.errors import UserError
from tests.evals.test_exported import export  # noqa: F401 (a fixture)


def test_the_whole_demo_suite_on_a_real_export(
    export: SimpleNamespace,  # noqa: F811
    data_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    options = ["--model", str(export.folder), "--data", str(data_dir), "--out", str(tmp_path)]
    small = ["--limit", "6", "--shots", "0,2", "--seeds", "0,1"]
    assert main(["demo", *options, *small, "--json"]) == 0
    results = json.loads(capfd.readouterr().out)
    assert results == json.loads((tmp_path / "results.json").read_text())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and page.count("<img") > 10  # naming and easy_vqa over shots
    options.append("--no-report")
    cells = {(cell["suite"], cell["num_shots"]): cell for cell in results["cells"]}
    assert list(cells) == [
        ("naming", 0),
        ("caption", 0),
        ("easy_vqa", 0),
        ("text_loss", 0),
        ("naming", 2),
        ("easy_vqa", 2),
    ]
    # A corpus of an older builder lacks the other sets; asked for by name they are an error.
    assert len(results["left_out"]) == len(LOCAL_SETS)
    assert all("mllm corpora demo --out" in line for line in results["left_out"])
    with pytest.raises(UserError, match="flags_test: no such corpus"):
        main(["flags", *options])
    with pytest.raises(UserError, match="flags_test: no such corpus"):
        main(["demo", *options, "--data", f"flags={data_dir}"])
    for cell in results["cells"]:
        assert cell["n"] == 6 and cell["per_seed"][0]["n"] == 6
        for entry in cell["per_seed"]:
            assert len((tmp_path / entry["samples"]).read_text().splitlines()) == 6
    assert cells["naming", 2]["seed_sd"] is not None
    # The same command again asks nothing and prints the same scores as a table.
    assert main(["demo", *options, *small]) == 0
    printed = capfd.readouterr().out
    assert "pixel neighbour" in printed and "with another picture" in printed
    assert "k=0 on the same queries" in printed
    # Another command in the same folder keeps what is there and renews its own.
    assert main(["naming", *options, "--limit", "6", "--shots", "0,4", "--seeds", "0"]) == 0
    merged = json.loads((tmp_path / "results.json").read_text())
    assert [(c["suite"], c["num_shots"]) for c in merged["cells"]] == [*cells, ("naming", 4)]
    assert merged["is_complete"]
    # Those of another model do not stay.
    merged["model_fingerprint"] = "another"
    (tmp_path / "results.json").write_text(json.dumps(merged))
    assert main(["text_loss", *options, "--limit", "6"]) == 0
    left = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert [c["suite"] for c in left] == ["text_loss"]


def test_suites_share_their_cells():
    demo = suite_cells("demo", None)
    assert len(demo) == len(set(demo))
    both = set(suite_cells("zeroshot", None)) | set(suite_cells("fewshot", None))
    assert set(demo) == {cell for cell in both if cell.task in LOCAL_TASKS}
    cells = suite_cells("caption", ("0", "0*", "4"))
    assert [(cell.num_shots, cell.is_textual) for cell in cells] == [
        (0, False),
        (0, True),
        (4, False),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "no suite or task 'nonsense'"),
        (["demo"], "--model is missing"),
        (["demo", "--model", "absent", "--out", "o"], "--model absent: no such folder"),
        (["naming", "--model", ".", "--out", "o", "--shots", "2;4"], "--shots 2;4"),
        (["naming", "--model", ".", "--out", "o", "--shots", "2,2"], "twice"),
        (["text_loss", "--model", ".", "--out", "o", "--shots", "2"], "without shots"),
        (["naming", "--model", ".", "--out", "o", "--seeds", "a"], "--seeds a"),
        (["naming", "--model", ".", "--out", "o", "--controls", "deaf"], "no control 'deaf'"),
        (["naming", "--model", ".", "--out", "o", "--select", "fixed"], "--shots-file"),
        (["naming", "--model", ".", "--out", "o", "--data", "nowhere=x"], "named 'nowhere'"),
        (["naming", "--out", "o", "--rescore", "--data", "absent"], "mllm corpora demo"),
        (["demo", "--model", ".", "--out", "o", "--workers", "0"], "--workers 0"),
        (["demo", "--model", ".", "--out", "o", "--limit", "0"], "--limit 0"),
        (["demo", "--model", ".", "--out", "o", "--limit", "5", "--full"], "exclude each other"),
        (["demo", "--model", ".", "--out", "o", "--data", "absent"], "mllm corpora demo"),
    ],
)
def test_mistakes_are_one_line_with_a_mend(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_the_installed_command_lists_what_is_ready(data_dir: Path, tmp_path: Path):
    command = [sys.executable, "-m", "mllm.cli", "eval"]
    done = subprocess.run(
        [*command, "list", "--data", str(data_dir), "--json"], capture_output=True, text=True
    )
    states = {row["name"]: row["state"] for row in json.loads(done.stdout)["tasks"]}
    assert states["naming"] == states["text_loss"] == "ready"
    missing = subprocess.run(
        [*command, "naming", "--model", str(tmp_path), "--data", "absent", "--out", "o"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert missing.returncode == 2 and missing.stdout == ""
    assert (
        missing.stderr.count("\n") == 1
        and "absent: no such folder for the data of naming" in missing.stderr
    )


def test_the_quick_suite_is_part_of_the_demos():
    quick = suite_cells("quick", None)
    assert {(cell.task, cell.num_shots) for cell in quick if cell.num_shots} == {
        ("naming", 2),
        ("naming", 4),
    }
    assert set(quick) <= set(suite_cells("demo", None)) and len(quick) == 6


def test_what_a_suite_goes_without_is_said_shortly():
    lines = [f"{name}: its data {NOWHERE_NAMED}; pass --data" for name in ("piqa", "copa")]
    assert left_out_lines([*lines, "pages: --shots 0 does not fit"]) == [
        "pages: --shots 0 does not fit",
        "2 tasks whose data is nowhere named; see `mllm eval list`",
    ]


def test_a_cell_that_does_not_fit_is_left_out_of_a_suite_and_an_error_by_name(
    export: SimpleNamespace,  # noqa: F811
    data_dir: Path,
    tmp_path: Path,
):
    asked = ["--model", str(export.folder), "--data", str(data_dir), "--out", str(tmp_path)]
    asked += ["--shots", "2,15", "--limit", "3", "--seeds", "0", "--no-report"]
    assert main(["fewshot", *asked]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {cell["num_shots"] for cell in results["cells"]} == {2} and results["is_complete"]
    assert any("naming: --shots 15 does not fit" in line for line in results["left_out"])
    with pytest.raises(UserError, match="--shots 15 does not fit"):
        main(["naming", *asked])

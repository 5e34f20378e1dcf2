"""The installed command: exit codes, one line on stderr, no traceback, no half-written output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.cli import VERBS, main
from mllm.files import write_aside

MLLM = Path(sys.executable).with_name("mllm")


def mllm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(MLLM), *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "no verb 'frobnicate'"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["train", "typo.yaml"], "did you mean train.num_steps?"),
        (["train", "good.yaml", "train.attention_backend=flash_attn"], "flash_attn is not inst"),
        (["train", "good.yaml", "train.attention_backend=xformers"], "needs a CUDA GPU"),
        (["export", "absent", "--out", "out"], "absent"),
        (["eval", "demo", "--model", "absent", "--out", "out"], "absent"),
        (["chat", "--model", "absent"], "absent"),
        (["doctor", "--model", "absent"], "absent: no model here"),
        (["report", "absent", "--out", "out.html"], "absent"),
        (["stop", "absent"], "absent"),
        (["corpora", "stats", "absent"], "absent"),
        (["tokenizer", "train", "absent", "--out", "out"], "absent"),
        (["demo", "--exclude", "absent.txt"], "absent.txt"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    (tmp_path / "good.yaml").write_text("run_dir: r\ntokenizer: t\ntrain: {precision: bf16}\n")
    (tmp_path / "typo.yaml").write_text("run_dir: r\ntokenizer: t\ntrain: {num_step: 3}\n")
    done = mllm(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert named in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.yaml", "typo.yaml"]


def test_a_full_disk_is_one_line_and_other_errors_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors: list[OSError] = [
        OSError(28, "No space left on device", "here"),
        OSError(28, "No space left on device"),
        OSError(5, "Input/output error"),
    ]

    def fail(argv: list[str]) -> int:
        raise errors.pop(0)

    monkeypatch.setattr("mllm.stop.main", fail)
    reason = "No space left on device; choose another place or free space\n"
    for place in ("here: ", ""):
        assert main(["stop", "run"]) == 2
        assert capsys.readouterr().err == f"mllm: error: {place}{reason}"
    with pytest.raises(OSError, match="Input/output"):
        main(["stop", "run"])


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_an_example(tmp_path: Path, verb: str) -> None:
    done = mllm(verb, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"mllm {verb}" in done.stdout.split("options:")[-1], done.stdout


def test_train_py_removes_its_own_folder_from_the_path(tmp_path: Path) -> None:
    """The launcher runs it as a script, which would let mllm/config.py shadow other packages."""
    script = Path(__file__).parent.parent / "mllm" / "train.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "deepspeed --num_accelerators 2" in done.stdout


def test_write_aside_leaves_the_old_file_when_the_body_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with write_aside(path) as file:
        file.write("old")
    with pytest.raises(OSError, match="full"), write_aside(path) as file:
        file.write("ne")
        raise OSError("disk full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]

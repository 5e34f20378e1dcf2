"""The verb as a user meets it before anything is read."""

import subprocess
import sys

import pytest

from corpora.command import main
from mllm.errors import UserError


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_has_an_example_of_each_kind(capsys):
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    shown = capsys.readouterr().out
    for kind in ("pairs", "interleaved", "text", "instruct"):
        assert f"mllm corpora import {kind} " in shown
    for flag in (
        "--min-image-side",
        "--dedup-near-text",
        "--decontaminate",
        "--min-kept",
        "--statistics",
    ):
        assert flag in shown


def test_without_datatrove_the_extra_is_named():
    result = python(
        "import sys; sys.modules['datatrove'] = None\n"
        "from mllm.cli import main; sys.exit(main(['corpora', 'import', 'text', 'x']))"
    )
    assert result.returncode == 2
    assert result.stderr == (
        'mllm: error: mllm corpora import needs datatrove: pip install "mllm[corpora]"\n'
    )


def test_other_verbs_do_not_import_datatrove():
    result = python(
        "import sys; from mllm.cli import main; code = main(['corpora', 'index', '/nowhere'])\n"
        "assert code == 2 and not any(m.split('.')[0] == 'datatrove' for m in sys.modules)"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("text",),
        ("texts", "x", "--out", "y"),
        ("text", "x", "--out", "y", "--min-kept", "2"),
        ("text", "x", "--out", "y", "--min-image-side", "few"),
        ("text", "x", "--out", "y", "--workers", "0"),
        ("text", "x", "--out", "y", "--samples-per-shard", "0"),
        ("text", "/nowhere", "--out", "y"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        main(["import", *arguments])
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []

"""The verbs as a user meets them: the installed command, its exit code, its one line."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corpora.command import main
from mllm.errors import UserError

from .test_index import write_tar


def mllm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mllm.cli", "corpora", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_truncated_shard_is_one_line_and_exit_code_two(corpus_dir):
    os.truncate(corpus_dir / "shard-000001.tar", 3000)
    for verb in ("index", "stats"):
        result = mllm(verb, corpus_dir)
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("mllm: error: ")
        assert "shard-000001.tar" in result.stderr


def test_json_is_one_object_on_stdout(corpus_dir):
    result = mllm("stats", corpus_dir, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["samples"] == 25


def test_index_says_what_is_bad_and_where_it_lies(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [("a.txt", b"x"), ("b.json", b"{")])
    assert main(["index", str(tmp_path), "--index-dir", str(tmp_path / "i"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 2
    assert result["bad_samples"] == 1
    assert result["index"] == str(tmp_path / "i")


@pytest.mark.parametrize(
    ("writer", "place"),
    [
        ("mllm.files.os.fsync", r"i/shards/shard-000000.tar.npz"),
        ("corpora.consolidate._ArrayFile.append", r"i/arrays.tmp-\d+"),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_place(
    corpus_dir, tmp_path, monkeypatch, writer, place
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` and `fsync` do

    monkeypatch.setattr(writer, full)
    with pytest.raises(UserError, match=f"{place}: no space left on the disk; make room"):
        main(["index", str(corpus_dir), "--index-dir", str(tmp_path / "i")])


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["lint"], ["demo", "--smal"]])
def test_a_wrong_command_line_is_a_user_error(arguments):
    with pytest.raises(UserError, match="--help"):
        main(arguments)


def test_hostile_names_stay_on_their_line(tmp_path):
    write_tar(tmp_path / "a.tar", [("two\nlines\x1b[31m.json", b"{")])
    (tmp_path / "b\n\udcff.tar").write_bytes(b"no tar")
    result = mllm("index", tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "/b\\n\\udcff.tar: not a whole tar shard" in result.stderr
    result = mllm("lint", tmp_path)
    assert result.returncode == 2
    assert result.stderr == ""
    assert "    a.tar two\\nlines\\x1b[31m: no document" in result.stdout
    assert "\x1b" not in result.stdout


def test_workers_end_with_a_killed_parent(tmp_path):
    script = """
import os, sys, time
from corpora.workers import each_shard

def work(name):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(each_shard(work, ["a", "b"], 2))
"""
    (tmp_path / "script.py").write_text(script)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in "ab"]
    parent.kill()
    parent.wait(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process_id}/stat") as file:
        return file.read().rpartition(") ")[2][0] != "Z"

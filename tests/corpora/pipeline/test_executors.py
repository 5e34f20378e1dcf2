"""SLURM: what `sbatch` is given, and that its jobs, run as it would run them, do the import."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from corpora.command import main
from corpora.pipeline.executors import ExecutorOptions
from corpora.reader import Corpus
from mllm.errors import UserError

# Records the script and its arguments, and answers as sbatch does; jobs are numbered.
SBATCH = """#!/bin/sh
n=$(ls "$RECORD" | wc -l)
cp "$(eval echo \\${$#})" "$RECORD/$n.sh"
echo "$@" > "$RECORD/$n.args"
mv "$RECORD/$n.args" "$RECORD/../args-$n"
echo "Submitted batch job $n"
"""


@pytest.fixture
def record(tmp_path, monkeypatch) -> Path:
    """A folder where a false sbatch puts what it is given."""
    folder, programs = tmp_path / "record", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    others = {"scontrol": "#!/bin/sh\necho here\n", "srun": '#!/bin/sh\nshift 3\nexec "$@"\n'}
    for name, text in ({"sbatch": SBATCH} | others).items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("RECORD", str(folder))
    return folder


def submit(tmp_path: Path, *more: str) -> int:
    folder = tmp_path / "in"
    folder.mkdir()
    for f in range(3):
        lines = (json.dumps({"text": f"file {f} line {i}"}) + "\n" for i in range(4))
        (folder / f"{f}.jsonl").write_text("".join(lines))
    slurm = ("--slurm", "partition=cpu,time=04:00:00", "--slurm", "qos=low,account=lab")
    arguments = ("text", str(folder), "--out", str(tmp_path / "out"), "--executor", "slurm")
    return main(["import", *arguments, *slurm, *more])


def test_sbatch_is_given_every_stage_in_order(tmp_path, record, monkeypatch, capsys):
    monkeypatch.setattr("corpora.pipeline.plan.MEGABYTE", 80)
    cut = ("--tasks", "2", "--workers", "2", "--unit-megabytes", "1")
    assert submit(tmp_path, *cut, "--dedup-exact", "text") == 0
    scripts = [path.read_text() for path in sorted(record.iterdir(), key=lambda p: int(p.stem))]
    jobs = [s for s in scripts if "launch_pickled_pipeline" in s]
    names = [s.split("--job-name=")[1].split("\n")[0] for s in jobs]
    assert names == ["mllm-read", "mllm-fingerprints", "mllm-pairs", "mllm-clusters"] + [
        "mllm-write",
        "mllm-finish",
    ]
    for line in ("partition=cpu", "time=04:00:00", "qos=low", "account=lab", "array=0-1%2"):
        assert f"#SBATCH --{line}\n" in jobs[0]
    waits = [p.read_text() for p in tmp_path.glob("args-*") if "afterok" in p.read_text()]
    assert len(waits) == len(jobs) - 1
    assert "submitted, 6 units; last job" in capsys.readouterr().out
    assert not (tmp_path / "out/index").exists()


@pytest.mark.slow
def test_the_submitted_jobs_do_the_import(tmp_path, record, monkeypatch):
    import subprocess

    submit(tmp_path, "--tasks", "2", "--workers", "1", "--dedup-exact", "text")
    scripts = [path for path in sorted(record.iterdir(), key=lambda p: int(p.stem))]
    for script in scripts:
        text = script.read_text()
        if "launch_pickled_pipeline" not in text:
            continue
        last = int(text.split("--array=0-")[1].split("%")[0].split("\n")[0])
        for number in range(last + 1):
            job = {"SLURM_ARRAY_TASK_ID": str(number), "RUN_OFFSET": "0", "SLURM_NODELIST": "here"}
            subprocess.run(["bash", script], env=os.environ | job, check=True, capture_output=True)
    assert len(Corpus(tmp_path / "out")) == 12
    assert json.loads((tmp_path / "out/import-report.json").read_bytes())["fingerprint"]


def test_what_slurm_lacks_is_named(tmp_path, record, monkeypatch):
    with pytest.raises(UserError, match=r"give --slurm time=\.\.\."):
        ExecutorOptions("slurm", slurm={"partition": "cpu"})
    with pytest.raises(UserError, match="--slurm is for --executor slurm"):
        ExecutorOptions("local", slurm={"partition": "cpu"})
    with pytest.raises(UserError, match="give NAME=VALUE"):
        submit(tmp_path, "--slurm", "nonsense")


def test_a_path_that_a_shell_would_take_apart_is_refused(tmp_path, record):
    folder = tmp_path / "a;touch x"
    folder.mkdir()
    with pytest.raises(UserError, match="cannot carry this path"):
        submit(folder)
    assert list(record.iterdir()) == []


def test_no_sbatch_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `sbatch` here"):
        submit(tmp_path)

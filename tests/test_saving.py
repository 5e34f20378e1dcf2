"""Saving beside training: what is written is the moment of the save, and failures are told."""

import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mllm import checkpoint_files, dist
from mllm.checkpoint import TrainState, newest_valid
from mllm.checkpoint_files import (
    bytes_file,
    checkpoints,
    json_file,
    problem_of,
    prune,
    safetensors_file,
)
from mllm.engine import Captured
from mllm.errors import UserError
from mllm.files import sha256_file, write_hashed
from mllm.saving import Saver, check_room
from mllm.snapshot import HostCopies

EXTRA = {"model_config.json": json_file({"sizes": 1}), "tokenizer.model": bytes_file(b"pieces")}


class LiveEngine:
    """Holds tensors that its `train` changes in place, two of them in one storage."""

    def __init__(self) -> None:
        flat = torch.zeros(6000)
        self.parameters = {"model.a": flat[:2000].view(2, 1000), "model.b": flat[2000:]}
        self.moment = torch.zeros(3000)

    def train(self, value: float) -> None:
        for tensor in (*self.parameters.values(), self.moment):
            tensor.fill_(value)

    def capture(self, folder: Path, tag: str, copies: HostCopies | None) -> Captured:
        state = {"module": dict(self.parameters), "moments": [self.moment], "step": (3, "x")}
        if copies is None:
            return Captured({f"{tag}/states.pt": state}, dict(self.parameters))
        copies.begin()
        captured = Captured({f"{tag}/states.pt": copies.copy(state)}, copies.copy(self.parameters))
        copies.end()
        return captured


def begin(saver: Saver, engine: LiveEngine, step: int) -> None:
    engine.train(float(step))
    saver.save(engine, TrainState(step=step))  # type: ignore[arg-type]


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Parts are not written before the function that it gives is called."""
    may_write = threading.Event()
    write_part = checkpoint_files.write_part

    def wait_and_write(*args: Any) -> None:
        assert may_write.wait(20)
        write_part(*args)

    monkeypatch.setattr(checkpoint_files, "write_part", wait_and_write)
    try:
        yield may_write.set
    finally:
        may_write.set()


@pytest.mark.parametrize("is_async", [True, False])
def test_a_checkpoint_is_of_its_moment_though_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    saver, engine = Saver(tmp_path, EXTRA, 9, is_async=is_async), LiveEngine()
    with slow_disk(monkeypatch) as let_go:
        if not is_async:
            let_go()
        begin(saver, engine, 1)
        engine.train(7.0)  # the next step
        assert (newest_valid(tmp_path) is None) == is_async
        let_go()
        assert saver.finish()
    begin(saver, engine, 2)  # into the same buffers
    assert saver.finish() and saver.saved_step == 2
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        assert problem_of(folder) is None
        state = torch.load(folder / "deepspeed" / "states.pt")
        weights = load_file(folder / "model.safetensors")
        assert state["step"] == (3, "x")
        for tensor in (*state["module"].values(), *state["moments"], *weights.values()):
            assert (tensor == step).all()
        assert weights["a"].shape == (2, 1000)


def test_copies_share_memory_as_the_originals_do_and_buffers_are_used_again() -> None:
    copies, flat = HostCopies(), torch.arange(600_000.0)
    state = {"whole": flat, "part": flat[1000:2000].view(10, 100).t(), "step": torch.tensor(3.0)}
    places = []
    for value in (1.0, 2.0):
        flat.add_(value)
        copies.begin()
        copied, alone = copies.copy(state), copies.copy_alone(flat * 2)
        copies.end()
        assert all(torch.equal(copied[name], state[name]) for name in state)
        assert torch.equal(alone, flat * 2)
        part, whole = copied["part"], copied["whole"]
        assert part.untyped_storage().data_ptr() == whole.data_ptr() != flat.data_ptr()
        assert part.stride() == state["part"].stride()
        places.append({whole.data_ptr(), alone.data_ptr()})
    assert places[0] == places[1]


def test_a_temporary_tensor_at_the_address_of_an_earlier_one_is_not_taken_for_it() -> None:
    copies = HostCopies()
    copies.begin()
    kept = [copies.copy_alone(torch.full((100_000,), float(i))) for i in range(20)]
    made = [copies.copy({"x": torch.full((100_000,), float(i))})["x"] for i in range(20)]
    copies.end()
    for i in range(20):
        assert (kept[i] == i).all() and (made[i] == i).all()


def test_two_saves_never_run_at_once_and_waiting_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, engine = Saver(tmp_path, EXTRA, 9), LiveEngine()
    for first in (1, 3):
        with slow_disk(monkeypatch) as let_go:
            begin(saver, engine, first)
            threading.Timer(0.2, let_go).start()
            begin(saver, engine, first + 1)
        assert saver.saved_step >= first  # the former was whole before the next began
        saver.finish()
    assert saver.saved_step == 4
    news = saver.news()
    assert [line for line in news if "checkpoint_every" in line] == [
        "mllm: step 2 waits until the checkpoint of step 1 is written; a larger "
        "train.checkpoint_every leaves it more time"
    ]
    assert sum("training waited" in line for line in news) == 4
    assert saver.news() == []
    assert saver.take_blocked_seconds() > 0.2 and saver.take_blocked_seconds() == 0


@pytest.mark.parametrize("is_async", [True, False])
def test_a_disk_that_takes_no_more_is_told_and_the_former_checkpoint_stands(
    tmp_path: Path, is_async: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system refuses to let a file grow, as a full disk does, in the middle of one."""
    saver, engine = Saver(tmp_path, EXTRA, 9, is_async=is_async), LiveEngine()
    begin(saver, engine, 1)
    assert saver.finish()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        begin(saver, engine, 2)
        assert not saver.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    out = capsys.readouterr().out
    assert "checkpoint of step 2 NOT written" in out and "File too large; free disk space" in out
    assert newest_valid(tmp_path).name == "step-00000001" and saver.saved_step == 1
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    begin(saver, engine, 3)  # there is room again
    assert saver.finish() and newest_valid(tmp_path).name == "step-00000003"


def test_a_checkpoint_that_the_disk_has_no_room_for_is_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left is for the metrics of the run that goes on."""
    saver = Saver(tmp_path, EXTRA, 9, expected_bytes=10**18)
    begin(saver, LiveEngine(), 1)
    assert not saver.finish()
    assert "No space left on device (" in capsys.readouterr().out
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_really_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small file system of its own, where this user may mount one; else in a user namespace."""
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            sys.executable,
            "-c",
            FULL,
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No space left on device; free disk space" in done.stdout


FULL = """
import subprocess, sys
from pathlib import Path
place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=True)
from mllm.checkpoint import newest_valid
from mllm.saving import Saver
from tests.test_saving import EXTRA, LiveEngine, begin
saver, engine = Saver(place, EXTRA, 9), LiveEngine()
begin(saver, engine, 1)
assert saver.finish()
filler = open(place / "filler", "wb", buffering=0)
try:
    while True:
        filler.write(b"0" * 4096)
except OSError:
    filler.truncate(filler.tell() - 40960)
begin(saver, engine, 2)
assert not saver.finish()
assert newest_valid(place).name == "step-00000001"
assert [p.name for p in (place / "checkpoints").iterdir() if p.is_dir()] == ["step-00000001"]
filler.truncate(0)
begin(saver, engine, 3)
assert saver.finish()
"""


def test_another_rank_that_fails_ends_the_wait_for_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As rank 0 of two: nobody writes the part of rank 1."""
    saver = Saver(tmp_path, EXTRA, 9)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "broadcast_object", lambda value: value)
    begin(saver, LiveEngine(), 1)
    assert saver._job is not None and saver._job.part_is_over.wait(10)
    assert not saver.has_failed  # this rank has written its own
    monkeypatch.setattr(dist, "all_reduce_sum", lambda values: [1.0])
    assert not saver.finish()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_fault_of_ours_in_the_thread_is_told_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = LiveEngine()
    engine.moment = lambda: None  # type: ignore[assignment]  # which cannot be pickled
    saver = Saver(tmp_path, EXTRA, 9)
    saver.save(engine, TrainState(step=1))  # type: ignore[arg-type]
    assert not saver.finish()
    assert "checkpoint of step 1 NOT written" in capsys.readouterr().out


def test_files_are_hashed_as_they_are_written_and_safetensors_reads_them(tmp_path: Path) -> None:
    weights = {"b": torch.randn(3, 5).t(), "a": torch.randn(()), "c": torch.zeros(0, 4)}
    entry = write_hashed(tmp_path / "x" / "model.safetensors", safetensors_file(weights))
    path = tmp_path / "x" / "model.safetensors"
    assert entry == {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    read = load_file(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Expecting property name"),
        ("[]", "names no state.json and model.safetensors"),
        ("{}", "names no state.json and model.safetensors"),
        ("\xff", "manifest.json"),
        ('{"state.json": 3, "model.safetensors": {}}', "'state.json' has no size and hash"),
        ('{"state.json": {}, "model.safetensors": {}, "../x": {}}', "'../x' lies outside"),
        ('{"state.json": {}, "model.safetensors": {}, "/x": {}}', "'/x' lies outside"),
    ],
)
def test_a_manifest_that_is_none_is_a_problem_and_the_checkpoint_before_is_used(
    tmp_path: Path, text: str, problem: str
) -> None:
    saver, engine = Saver(tmp_path, EXTRA, 9), LiveEngine()
    for step in (1, 2):
        begin(saver, engine, step)
        saver.finish()
    (tmp_path / "checkpoints" / "latest").unlink()  # a convenience, which nothing here reads
    newest = newest_valid(tmp_path)
    assert newest is not None and newest.name == "step-00000002"
    (newest / "manifest.json").write_bytes(text.encode("latin-1"))
    assert problem in (problem_of(newest) or "")
    assert newest_valid(tmp_path).name == "step-00000001"


def test_room_on_disk_is_looked_at_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = SimpleNamespace(free=3 * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    check_room(tmp_path, 10**9, keep=2)
    assert capsys.readouterr().out == ""
    check_room(tmp_path, 10**9, keep=3)
    assert "3.00 GB of disk free; train.keep_checkpoints 3 and one being written take 4.00 GB" in (
        capsys.readouterr().out
    )
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    check_room(tmp_path, 10**9, keep=3)  # one of them is there already
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"take 16.00 GB more, 4.00 GB each; free space, or"):
        check_room(tmp_path, 4 * 10**9, keep=4)


@given(num=st.integers(1, 12), keep=st.integers(1, 12))
def test_the_newest_are_kept_and_no_more_go_than_must(num: int, keep: int) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for step in range(1, num + 1):
            (folder / f"step-{step:08d}").mkdir()
            prune(folder / f"step-{step:08d}", keep)
        left = [int(path.name[5:]) for path in checkpoints(folder)]
    assert left == list(range(1, num + 1))[-keep:]

"""Whole or not there: manifests, flipped bytes, half-written folders, a full disk."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mllm import checkpoint
from mllm.checkpoint import TrainState, init_from, latest, newest_valid
from mllm.checkpoint_files import bytes_file, json_file, problem_of
from mllm.engine import Captured
from mllm.errors import UserError
from mllm.saving import Saver
from mllm.snapshot import HostCopies


class FakeEngine:
    """Writes what an engine would write; `disk_is_full` makes it fail as a full disk does."""

    disk_is_full = False
    stage = 3
    zero_fingerprint = "other"

    def capture(self, folder: Path, tag: str, copies: HostCopies | None) -> Captured:
        if self.disk_is_full:
            raise OSError(28, "No space left on device")
        weights = {"model.a": torch.arange(4.0), "model.head.weight": torch.zeros(2)}
        return Captured({f"{tag}/states.pt": {"moments": torch.zeros(100)}}, weights)

    def why_not_fill(self) -> str:
        return "offload_param to nvme"


def save_step(run_dir: Path, engine: FakeEngine, step: int) -> bool:
    extra = {"model_config.json": json_file({"sizes": 1}), "tokenizer.model": bytes_file(b"pieces")}
    saver = Saver(run_dir, extra, keep=2)
    saver.save(engine, TrainState(step=step))
    return saver.finish()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (10, 20):
        assert save_step(tmp_path, FakeEngine(), step)
    return tmp_path


def test_the_newest_is_found_old_ones_are_pruned_and_ties_are_stored_once(run_dir: Path) -> None:
    save_step(run_dir, FakeEngine(), 30)
    names = [path.name for path in checkpoint.checkpoints(run_dir / "checkpoints")]
    assert names == ["step-00000020", "step-00000030"]
    assert newest_valid(run_dir).name == "step-00000030"
    assert (run_dir / "checkpoints" / "latest").read_text() == "step-00000030\n"
    manifest = json.loads((newest_valid(run_dir) / "manifest.json").read_text())
    assert sorted(manifest) == [
        "deepspeed/states.pt",
        "model.safetensors",
        "model_config.json",
        "state.json",
        "tokenizer.model",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "deepspeed/states.pt", "state.json"])
def test_a_flipped_byte_is_found_and_the_checkpoint_before_is_used(
    run_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / "checkpoints" / "step-00000020" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert newest_valid(run_dir).name == "step-00000010"
    assert name in capsys.readouterr().out


def test_missing_short_and_manifestless_files_are_found(run_dir: Path) -> None:
    newest = run_dir / "checkpoints" / "step-00000020"
    (newest / "deepspeed" / "states.pt").write_bytes(b"\0" * 99)
    assert "99 bytes" in problem_of(newest)
    (newest / "deepspeed" / "states.pt").unlink()
    assert "missing" in problem_of(newest)
    (newest / "manifest.json").unlink()
    assert "manifest" in problem_of(newest)


def test_a_folder_that_a_kill_left_half_written_is_not_taken_for_a_checkpoint(
    run_dir: Path,
) -> None:
    shutil.copytree(
        run_dir / "checkpoints" / "step-00000020", run_dir / "checkpoints" / ".tmp-step-00000030"
    )
    assert newest_valid(run_dir).name == "step-00000020"


def test_a_full_disk_leaves_the_previous_checkpoint_and_training_goes_on(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine()
    engine.disk_is_full = True
    assert not save_step(run_dir, engine, 30)
    assert "No space left" in capsys.readouterr().out
    assert newest_valid(run_dir).name == "step-00000020"
    assert not list((run_dir / "checkpoints").glob(".tmp*"))


def test_a_stage_that_cannot_take_over_is_one_line_with_a_way_out(run_dir: Path) -> None:
    with pytest.raises(UserError) as caught:
        checkpoint.resume(newest_valid(run_dir), FakeEngine())
    assert str(caught.value).endswith(
        "was written by 1 rank with ZeRO-1, this run has 1 rank with ZeRO-3, which offload_param "
        "to nvme does not take over; start it with 1 rank with ZeRO-1 and the same zero.config"
    )


def test_no_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in"):
        latest(tmp_path)
    with pytest.raises(UserError, match="no checkpoint in"):
        latest(tmp_path / "absent")


class Holder(torch.nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(size))
        self.b = torch.nn.Parameter(torch.zeros(1))


def test_init_from_copies_equal_names_and_tells_the_rest(run_dir: Path) -> None:
    module = Holder(4)
    copied, missing = init_from(module, run_dir)
    assert (copied, missing) == (1, ["b"])
    assert module.a.tolist() == [0, 1, 2, 3]


def test_init_from_an_export_folder(tmp_path: Path) -> None:
    save_file({"model.a": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    module = Holder(4)
    assert init_from(module, tmp_path)[0] == 1 and module.a.tolist() == [1] * 4


def test_init_from_refuses_other_shapes_and_strangers(run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"a has shape \[4\], the model \[5\]"):
        init_from(Holder(5), run_dir)
    with pytest.raises(UserError, match="no tensor of it"):
        init_from(torch.nn.Linear(2, 2), run_dir)


def test_pruning_never_takes_what_was_just_written_for_one_that_is_only_later(
    run_dir: Path,
) -> None:
    """A corrupt later checkpoint that was passed over at resume must not push good ones out."""
    assert save_step(run_dir, FakeEngine(), 15)
    names = [path.name for path in checkpoint.checkpoints(run_dir / "checkpoints")]
    assert names == ["step-00000010", "step-00000015", "step-00000020"]


def test_a_run_whose_checkpoints_are_all_broken_does_not_start_anew_silently(
    run_dir: Path, tmp_path: Path
) -> None:
    assert checkpoint.resume_point(tmp_path / "new") is None
    assert checkpoint.resume_point(run_dir).name == "step-00000020"
    for folder in checkpoint.checkpoints(run_dir / "checkpoints"):
        (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"none of the 2 checkpoints"):
        checkpoint.resume_point(run_dir)

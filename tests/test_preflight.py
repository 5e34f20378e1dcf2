"""A config is refused in one line before anything is started or written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm import launch
from mllm.cli import main
from tests.conftest import World
from tests.scenarios import pretrain_config


@pytest.fixture
def values(world: World, tmp_path: Path) -> dict[str, Any]:
    return json.loads(json.dumps(pretrain_config(world.root, tmp_path / "run").to_dict()))


def write(values: dict[str, Any], folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


CASES = [
    # overrides, ranks, what the line names
    (["train.global_batch_size=6"], 4, ("no multiple of 4 ranks", "use 4 or 8")),
    (["model.num_heads=5"], 1, ("num_heads 5",)),
    (["model.vision.num_heads=5"], 1, ("vision.num_heads 5",)),
    (["model.num_latents=200"], 1, ("seq_len", "num_latents 200")),
    (["model.vocab_size=361"], 1, ("model.vocab_size is 361", "360 pieces")),
    (["tokenizer=absent"], 1, ("absent", "mllm tokenizer train")),
    (["data.mixture=[]"], 1, ("data.mixture names no source",)),
    (["data.mixture=[{name: x, path: absent}]"], 1, ("data.mixture: x: absent", "no such")),
    (["data.mixture=[{name: x, path: UNINDEXED}]"], 1, ("data.mixture: x", "corpora index")),
    (["data.validation=[{name: v, path: absent}]"], 1, ("data.validation: v: absent",)),
    (["data.exclude=[absent.txt]"], 1, ("data.exclude: no file absent.txt",)),
    (["init_from=absent"], 1, ("init_from absent: no such folder",)),
    (["init_from=UNINDEXED"], 1, ("init_from", "no checkpoint in it")),
    (["vision_weights=absent.pt"], 1, ("vision_weights absent.pt",)),
    (
        ["stage=vision", "train.micro_batch_size=4", "train.activation_checkpointing=full"],
        1,
        ("train.activation_checkpointing full", "stage vision"),
    ),
    (["zero.config=absent.json"], 1, ("zero.config absent.json",)),
    (["zero.config=TEXT"], 1, ("zero.config", "not JSON")),
    (["zero.config=LIST"], 1, ("zero.config", "not a DeepSpeed config")),
    (["zero.stage=2", "zero.config=deepspeed_configs/zero1.json"], 1, ("zero.stage is 2",)),
    (["zero.stage=0", "train.precision=bf16"], 1, ("bf16 with zero.stage 0",)),
    (["train.precision=fp16"], 1, ("train.precision fp16 needs an accelerator",)),
    (["train.attention_backend=flash_attn"], 1, ("train.attention_backend flash_attn",)),
    (["stage=vision"], 1, ("stage vision compares all pairs",)),
    (["train.time_limit=soon"], 1, ("time_limit", "soon")),
    (["train.hang_timeout_seconds=0"], 1, ("train.hang_timeout_seconds",)),
]


@pytest.mark.parametrize(
    ("overrides", "num_ranks", "named"), CASES, ids=lambda case: str(case)[:60]
)
def test_a_config_that_cannot_be_trained_is_refused_before_any_process_starts(
    world: World,
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    num_ranks: int,
    named: tuple[str, ...],
) -> None:
    def started(*_: object, **__: object) -> int:
        raise AssertionError("ranks were started")

    monkeypatch.setattr(launch, "run_ranks", started)
    unindexed = tmp_path / "shards"
    unindexed.mkdir()
    shutil.copy(next(world.pairs.glob("*.tar")), unindexed)
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    places = {
        "UNINDEXED": unindexed,
        "TEXT": tmp_path / "text.json",
        "LIST": tmp_path / "list.json",
    }
    for word, path in places.items():
        overrides = [override.replace(word, str(path)) for override in overrides]
    path = write(values, tmp_path)
    assert main(["train", path, *overrides, "--num-ranks", str(num_ranks)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mllm: error: ") and err.count("\n") == 1, err
    for text in named:
        assert text in err
    assert not (tmp_path / "run").exists()
    with pytest.raises(AssertionError, match="ranks were started"):  # the config itself is sound
        main(["train", path])


def test_what_a_begun_run_no_longer_reads_may_be_gone(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run_ranks", lambda *_, **__: 0)
    path = write(values | {"init_from": "gone", "vision_weights": "gone"}, tmp_path)
    assert main(["train", path]) == 2
    (tmp_path / "run" / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert main(["train", path]) == 0


def test_auto_is_the_precision_that_a_run_began_with(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launch, "run_ranks", lambda *_, **__: 0)
    (tmp_path / "run").mkdir()
    values["train"]["precision"] = "bf16"
    write(values, tmp_path / "run")
    values["train"]["precision"], values["zero"]["stage"] = "auto", 0
    path = write(values, tmp_path)
    assert main(["train", path]) == 2
    assert "bf16 with zero.stage 0" in capsys.readouterr().err


NODES = [
    (["--nnodes", "2"], "needs --node-rank"),
    (["--nnodes", "2", "--node-rank", "1"], "needs --master-addr"),
    (["--nnodes", "2", "--node-rank", "2", "--master-addr", "a"], "nodes are 0 to 1"),
    (["--node-rank", "1"], "give --nnodes"),
    (["--nnodes", "0"], "--nnodes 0"),
    (["--num-ranks", "0"], "--num-ranks 0"),
]


@pytest.mark.parametrize(("options", "message"), NODES)
def test_node_options_that_do_not_fit_are_named(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "mllm/configs/demo_cpu.yaml", *options]) == 2
    _, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1


def test_a_node_knows_its_ranks() -> None:
    node = launch.Node(num_ranks=4, number=2, num_nodes=3, master_addr="n0", master_port=4000)
    assert node.world_size == 12
    assert node.variables(1) == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "12",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "n0",
        "MASTER_PORT": "4000",
    }


def test_the_ranks_of_another_launcher_refuse_it_too(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """One process, as srun or torchrun would start it."""
    values["model"]["vocab_size"] = 361
    done = subprocess.run(
        [sys.executable, "mllm/train.py", write(values, tmp_path)], capture_output=True, text=True
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("mllm:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "model.vocab_size is 361" in errors[0]
    assert not (tmp_path / "run").exists()

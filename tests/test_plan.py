"""`mllm plan` against models that are really built, DeepSpeed's real tensors, and real files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mllm.bench import plan as bench
from mllm.config import load_config
from mllm.dist import free_port
from mllm.engine_config import deepspeed_config
from mllm.errors import UserError
from mllm.model.init import build
from mllm.plan import _safetensors_header, advise, checkpoint_bytes, plan
from mllm.step_memory import build_empty, step_memory
from mllm.zero_memory import Groups, parameter_numels, resident
from tests.conftest import World
from tests.scenarios import pretrain_config, vision_config, with_stage

ROOT = Path(__file__).parent.parent
KOSMOS = ROOT / "mllm" / "configs" / "kosmos1_1.6b.yaml"
MLLM = Path(sys.executable).with_name("mllm")
ANYWHERE = Path("nowhere")
TWO_GROUPS = Groups([[7, 5], [100, 30, 3]], frozen=[11])  # two groups, something frozen


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **more}}


def test_parameters_are_those_of_a_model_that_is_really_built() -> None:
    """Tied embeddings count once, frozen blocks are apart."""
    config = pretrain_config(ANYWHERE, ANYWHERE)
    model = build(config.model, seed=0)
    model.vision.freeze(config.train.train_last_blocks)
    groups = parameter_numels(build_empty(config), config)
    assert groups.num_all == sum(p.numel() for p in set(model.parameters()))
    assert groups.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len(groups.trainable) == 2 and groups.frozen


@pytest.mark.parametrize(
    ("stage", "precision", "world_size", "expected"),
    [  # by hand, of TWO_GROUPS: T = 145 in 5 tensors, P = 156
        (0, "fp32", 1, (4 * 156, 4 * 145, 8 * 145 + 4 * 5)),
        # padded to 2W = 4: 12 and 136; parts of 6 and 68
        (1, "fp32", 2, (4 * (148 + 11), 4 * 145, 12 * 74 + 8)),
        (1, "bf16", 2, (2 * (148 + 11), 4 * 148, 12 * 74 + 8)),
        # rank 0's parts of 6 and 68 touch 7 and 100
        (2, "fp32", 2, (4 * (148 + 11), 4 * 107, 12 * 74 + 8)),
        (2, "bf16", 2, (2 * (148 + 11), 4 * 74, 12 * 74 + 8)),
        # ceil of each half: 4 + 3, 50 + 15 + 2, and 6 frozen
        (3, "fp32", 2, (4 * (74 + 6), 4 * 74, 12 * 74 + 8)),
        (3, "bf16", 2, (2 * (74 + 6), 4 * 74, 12 * 74 + 8)),
    ],
)
def test_bytes_of_two_groups_with_a_frozen_part(
    stage: int, precision: str, world_size: int, expected: tuple[int, int, int]
) -> None:
    held = resident(TWO_GROUPS, zero(stage), precision, world_size)
    assert (held.parameters, held.gradients, held.optimizer) == expected


def test_what_is_offloaded_lies_on_the_host() -> None:
    settings = zero(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"})
    held = resident(TWO_GROUPS, settings, "bf16", 2)
    assert (held.parameters, held.gradients, held.optimizer) == (0, 0, 0)
    assert held.host == 2 * (74 + 6) + 4 * 74 + 12 * 74 + 8


def test_the_header_of_the_weights_file_is_exact(tmp_path: Path) -> None:
    config = pretrain_config(ANYWHERE, ANYWHERE)
    model = build(config.model, seed=0)
    weights = dict(model.named_parameters())
    save_file({name: p.detach() for name, p in weights.items()}, tmp_path / "model.safetensors")
    size = 4 * sum(p.numel() for p in weights.values())
    assert (tmp_path / "model.safetensors").stat().st_size == size + _safetensors_header(model)


def test_activations_are_those_that_autograd_saves() -> None:
    """The forward pass, with real tensors, through the hooks of autograd; no checkpointing."""
    config = pretrain_config(ANYWHERE, ANYWHERE)
    saved: dict[int, int] = {}
    model = build_empty(config, "cpu")
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    shape = (1, config.model.seq_len)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        latents = model.encode_images(torch.zeros(3, 3, 24, 24))
        embeddings = model.decoder.embed_tokens(torch.zeros(shape, dtype=torch.int64))
        embeddings = embeddings + latents.sum()
        hidden = model.decoder(embeddings, torch.zeros(shape, dtype=torch.int64))
    planned = step_memory(config, "fp32", 3, config.model.seq_len, on_cpu=True).activations
    assert hidden.requires_grad and sum(saved.values()) == pytest.approx(planned, rel=0.15)


def test_checkpointing_keeps_less_and_half_precision_about_half() -> None:
    config = pretrain_config(ANYWHERE, ANYWHERE)

    def kept(mode: str, precision: str = "fp32") -> int:
        changed = replace(config, train=replace(config.train, activation_checkpointing=mode))
        return step_memory(changed, precision, 2, 100, on_cpu=False).activations

    assert kept("full") < kept("selective") < kept("none")
    assert 0.4 < kept("none", "bf16") / kept("none") < 0.65


def test_the_papers_model_plans_as_its_preset_says() -> None:
    result = plan(load_config(KOSMOS), world_size=72, device="A100-80", mfu=0.4)
    assert sum(n for n, _ in result["parameters"].values()) == 1_662_375_936
    assert result["fits"] and result["step"]["tokens"] == 576 * 2048
    assert 4 < result["time"]["seconds"] / 86400 < 6  # five days of 64
    # DeepSpeed's own estimate of ZeRO-1: 12 bytes a trainable parameter over the ranks.
    trainable = sum(n for _, n in result["parameters"].values())
    assert result["memory"]["optimizer"] == pytest.approx(12 * trainable / 72, rel=1e-4)


def test_the_first_change_that_makes_it_fit_is_named_and_fits() -> None:
    config = load_config(KOSMOS, ["train.activation_checkpointing=none"])
    question: dict[str, Any] = {"world_size": 72, "device": "A100-40", "mfu": 0.4}
    assert not plan(config, **question)["fits"]
    advice = advise(config, **question)
    assert advice.startswith("would fit with train.micro_batch_size=")
    size = int(advice.split("=")[1].split(":")[0])
    changed = replace(config, train=replace(config.train, micro_batch_size=size))
    assert plan(changed, **question)["fits"]


@pytest.mark.parametrize(
    ("overrides", "changed", "named"),
    [
        ([], {"device": "H300"}, "--device H300"),
        ([], {"world_size": 64}, "train.global_batch_size 576"),
        ([], {"device": "V100"}, "train.precision bf16"),
        (["zero.stage=0"], {}, "bf16 with zero.stage 0"),
        ([], {"images_per_row": 99}, "--images-per-row 99"),
        (["stage=vision"], {}, "stage vision compares"),
    ],
)
def test_what_training_would_refuse_is_refused(
    overrides: list[str], changed: dict[str, Any], named: str
) -> None:
    question = {"world_size": 1, "device": "H100", "mfu": 0.4} | changed
    with pytest.raises(UserError, match=named):
        plan(load_config(KOSMOS, overrides), **question)


def test_the_vision_stage_plans() -> None:
    config = vision_config(ANYWHERE, ANYWHERE, 12)
    result = plan(config, world_size=1, device="cpu", mfu=0.5)
    assert result["step"]["images"] == 12 and set(result["parameters"]) >= {"vision", "text"}
    assert result["memory"]["peak"] > result["memory"]["parameters"] > 0


def test_json_is_one_object_and_a_table_has_a_verdict(tmp_path: Path) -> None:
    command = [str(MLLM), "plan", str(ROOT / "mllm/configs/demo_cpu.yaml"), "--device", "cpu"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["fits"] and result["advice"] is None and result["checkpoint"]["bytes"] > 0
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "fits: " in done.stdout and "optimizer" in done.stdout
    done = subprocess.run([*command, "--mfu", "3"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("mllm: error: --mfu 3")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def tensor_bytes(value: Any, storages: dict[int, int]) -> int:
    """Bytes of all storages below `value`, each once."""
    if torch.is_tensor(value):
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    elif isinstance(value, dict):
        for item in value.values():
            tensor_bytes(item, storages)
    elif isinstance(value, list | tuple):
        for item in value:
            tensor_bytes(item, storages)
    return sum(storages.values())


@pytest.mark.slow
def test_bytes_are_those_of_real_runs(world: World, tmp_path: Path) -> None:
    """Tensors of rank 0 in memory, and of all files on disk, on 1 and 2 ranks, ZeRO 0 to 3."""
    launcher = Path(sys.executable).with_name("deepspeed")
    problems = []
    two = [str(launcher), "--master_port", str(free_port()), "--num_accelerators", "2"]
    for world_size, command in ((1, [sys.executable]), (2, two)):
        script = [*command, str(ROOT / "tests" / "plan_runs.py"), str(world.root), str(tmp_path)]
        done = subprocess.run(script, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found = json.loads((tmp_path / f"held-{world_size}.json").read_text())
        for name, held in found.items():
            precision, stage = name.split("-")
            config = with_stage(pretrain_config(world.root, tmp_path), int(stage), precision)
            settings = deepspeed_config(config, precision, world_size)
            model = build_empty(config)
            groups = parameter_numels(model, config)
            planned = resident(groups, settings, precision, world_size)
            for part, size in held.items():
                if getattr(planned, part) != size:
                    problems.append((world_size, name, part, getattr(planned, part), size))
            folder = tmp_path / f"{name}-{world_size}" / "checkpoints" / "step-00000001"
            real = 0
            for path in (folder / "deepspeed").rglob("*.pt"):
                real += tensor_bytes(torch.load(path, weights_only=False), {})
            real += tensor_bytes(load_file(folder / "model.safetensors"), {})
            on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            disk = checkpoint_bytes(model, groups, settings, precision, world_size)
            tensors = disk["weights"] + disk["module"] + disk["optimizer"]
            if tensors != real:
                problems.append((world_size, name, "checkpoint", tensors, real))
            if abs(disk["bytes"] - on_disk) > 64 * 1024:
                problems.append((world_size, name, "disk", disk["bytes"], on_disk))
    assert not problems


@pytest.mark.slow
def test_the_peak_is_near_that_of_real_runs_at_sizes_that_were_not_fitted() -> None:
    """`make bench ROWS=plan` holds it to 15 %; eleven of twelve keep to it, one is 16 % off."""
    result = bench.run()
    held_out = [row for row in result["rows"] if not row["is_fitted"]]
    errors = sorted(abs(row["planned_bytes"] / row["measured_bytes"] - 1) for row in held_out)
    said = "\n".join(bench.lines(result))
    assert len(errors) == 12 and errors[-1] < 0.20 and errors[-3] < bench.TARGET, said

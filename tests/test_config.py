"""Configs: typos, types, contradictions, overrides, and what a run folder may continue with."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mllm.config import Precision, SourceConfig, changed_keys, load_config, parse_config
from mllm.engine_config import deepspeed_config, resolve_precision, zero_settings
from mllm.errors import UserError
from mllm.optim import learning_rate
from mllm.plan import plan
from mllm.recipe.steps import read_recipe, resolve
from mllm.run_folder import continue_folder
from mllm.step_memory import build_empty

FILES = sorted((Path(__file__).parent.parent / "mllm" / "configs").glob("*.yaml"))
CONFIGS = [path for path in FILES if not path.stem.startswith("recipe_")]
RECIPES = [path for path in FILES if path not in CONFIGS]
MINIMAL = {"run_dir": "r", "tokenizer": "t"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_loads_and_opens_with_its_command(path: Path) -> None:
    config = load_config(path)
    assert parse_config(config.to_dict(), "again") == config
    header = path.read_text().split("run_dir")[0]
    assert f"mllm/train.py mllm/configs/{path.name}" in header and "Hardware" in header


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_in_the_repository_resolves_and_opens_with_its_command(path: Path) -> None:
    steps = resolve(read_recipe(path), path).steps
    assert steps[-1].needs  # it reads what an earlier one made
    header = path.read_text().split("out:")[0]
    assert f"mllm recipe mllm/configs/{path.name}" in header
    assert "Hardware" in header and "Expect" in header


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_builds_without_taking_memory(path: Path) -> None:
    model = build_empty(load_config(path))
    assert all(p.is_meta for p in model.parameters())
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_the_small_preset_fits_its_gpu_and_has_the_size_it_names() -> None:
    path = FILES[0].with_name("small_1gpu.yaml")
    planned = plan(load_config(path), world_size=1, device="RTX4090", mfu=0.4)
    assert planned["fits"] and planned["memory"]["peak"] < 14 * 2**30
    total = sum(number for number, _ in planned["parameters"].values())
    assert f"{total:,} parameters" in path.read_text() and 100e6 < total < 200e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian": {}}, "unknown key trian; did you mean train?"),
        ({"train": {"num_step": 3}}, "unknown key train.num_step; did you mean train.num_steps?"),
        ({"model": {"vision": {"with": 3}}}, "did you mean model.vision.width?"),
        ({"data": {"mixture": [{"nam": "x"}]}}, "data.mixture[0].nam"),
        ({"train": {"num_steps": "many"}}, "train.num_steps"),
        ({"train": {"precision": "bf17"}}, "train.precision"),
        ({"train": {"micro_batch_size": 3, "global_batch_size": 8}}, "micro_batch_size 3"),
        ({"data": {"mixture": [{"name": "x", "path": "p", "weight": -1}]}}, "weight -1"),
        ({"model": {"model_dim": 100, "num_heads": 3}}, "num_heads 3"),
        ({"zero": {"stage": 4}}, "zero.stage"),
        ({"train": {"micro_batch_size": 0}}, "train.micro_batch_size"),
        ({"train": {"checkpoint_every": 0}}, "train.checkpoint_every"),
        ({"data": {"exclude_steps": ["9:3"]}}, "data.exclude_steps: '9:3' is no window"),
        ({"data": {"num_workers": -1}}, "data.num_workers"),
        ({"model": {"num_heads": 0}}, "num_heads is 0"),
        ({"model": {"vision": {"patch_size": 0}}}, "patch_size is 0"),
        ({"model": {"dropout": 1}}, "dropout 1.0 must be"),
        ({"model": {"attention_dropout": -0.1}}, "attention_dropout -0.1 must be"),
    ],
)
def test_mistakes_are_one_line_that_names_file_and_key(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(MINIMAL | changes, "some.yaml")
    assert str(caught.value).startswith("some.yaml: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="tokenizer"):
        parse_config({"run_dir": "r"}, "some.yaml")


def test_overrides_are_yaml_values_at_dotted_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_config(path, ["train.peak_lr=1e-3", "model.vision.width=64", "seed=7"])
    assert config.train.peak_lr == 1e-3 and config.model.vision.width == 64 and config.seed == 7
    for wrong in ("train.num_steps", "=3", "seed.x=1"):
        with pytest.raises(UserError):
            load_config(path, [wrong])


@pytest.mark.parametrize("text", ["a: [", "", "- 1", "\x00"])
def test_files_that_are_no_config_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert "c.yaml" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="absent"):
        load_config(tmp_path / "absent.yaml")


def test_a_run_folder_keeps_what_matters_and_lets_the_rest_change(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = parse_config(MINIMAL | {"run_dir": str(run_dir)}, "c")
    first = continue_folder(run_dir, config, "fp32")
    assert first.train.precision == "fp32"
    # `auto` means what the run began with, whatever this machine would choose.
    assert continue_folder(run_dir, config, "bf16").train.precision == "fp32"
    (run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)
    moved = replace(config, train=replace(config.train, checkpoint_every=7))
    assert continue_folder(run_dir, moved, "fp32").train.checkpoint_every == 7
    slower = replace(config, train=replace(config.train, peak_lr=1e-5))  # as after a spike
    assert continue_folder(run_dir, slower, "fp32").train.peak_lr == 1e-5
    with pytest.raises(UserError, match=r"train\.adam_eps differs from .*config.yaml"):
        continue_folder(run_dir, replace(slower, train=replace(slower.train, adam_eps=1.0)), "fp32")


def test_the_mixture_may_change_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    config = parse_config(MINIMAL | {"run_dir": str(run_dir)}, "c")
    continue_folder(run_dir, config, "fp32")
    (run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)
    mixture = [SourceConfig("text", "somewhere")]
    data = replace(config.data, mixture=mixture, exclude_steps=["3:5"], exclude=["list.txt"])
    continue_folder(run_dir, replace(config, data=data, seed=4), "fp32")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "data.mixture changed" in said[0] and "seed changed" in said[1]
    for key, changed in (
        ("data.score_image_start", replace(data, score_image_start=True)),
        ("data.resize", replace(data, resize="crop")),
    ):
        with pytest.raises(UserError, match=key.replace(".", r"\.")):
            continue_folder(run_dir, replace(config, data=changed, seed=4), "fp32")


def test_a_backend_that_this_machine_cannot_run_writes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank's own check: under DeepSpeed's launcher there is none before it."""

    def begin(backend: str, precision: Precision, stage: str = "pretrain") -> None:
        train = {"attention_backend": backend, "precision": precision}
        values = {"run_dir": str(run_dir), "train": train, "stage": stage}
        continue_folder(run_dir, parse_config(MINIMAL | values, "c"), precision)

    run_dir = tmp_path / "run"
    spec = importlib.util.find_spec
    with pytest.raises(UserError, match=r"flash_attn is not installed; pip install 'mllm\[gpu\]'"):
        begin("flash_attn", "bf16")
    with pytest.raises(UserError, match="xformers needs a CUDA GPU"):
        begin("xformers", "bf16")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec("torch"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="flash_attn has no fp32 kernels"):
        begin("flash_attn", "fp32")
    assert not run_dir.exists()
    begin("flash_attn", "fp32", stage="vision")  # has no packed rows
    for backend, precision in (("flash_attn", "bf16"), ("xformers", "fp32"), ("sdpa", "fp32")):
        begin(backend, precision)  # type: ignore[arg-type]


def test_changed_keys_names_the_leaves() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    assert changed_keys(old, {"a": 1, "b": {"c": 9, "d": 3}}) == ["b.c"]


def test_world_sizes_that_do_not_divide_name_the_nearest_that_do() -> None:
    config = parse_config(MINIMAL | {"train": {"micro_batch_size": 4}}, "c")
    with pytest.raises(UserError, match=r"use 12$"):
        deepspeed_config(config, "fp32", 3)
    larger = replace(config, train=replace(config.train, global_batch_size=32))
    with pytest.raises(UserError, match=r"use 24 or 36$"):
        deepspeed_config(larger, "fp32", 3)


def test_zero_config_and_stage_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "z.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    config = parse_config(MINIMAL | {"zero": {"stage": 3, "config": str(path)}}, "c")
    with pytest.raises(UserError, match=r"zero\.stage is 3 but .* has stage 2"):
        zero_settings(config)


def test_what_others_call_a_key_is_known() -> None:
    with pytest.raises(UserError, match=r"unknown key train.skip_steps; use data.exclude_steps"):
        parse_config(MINIMAL | {"train": {"skip_steps": ["1:2"]}}, "c")


def test_fp16_is_refused_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="fp16 needs an accelerator"):
        resolve_precision("fp16")


def test_wsd_stays_at_its_peak_up_to_its_last_steps() -> None:
    train: dict[str, Any] = {"num_steps": 100, "warmup_steps": 10, "schedule": "wsd"}
    train |= {"peak_lr": 0.5, "decay_steps": 20, "final_lr_share": 0.1}
    rates = [
        learning_rate(parse_config(MINIMAL | {"train": train}, "c").train, a) for a in range(100)
    ]
    assert rates[9:80] == [0.5] * 71
    assert rates[79:] == pytest.approx([0.5 - 0.45 * i / 20 for i in range(21)])
    longer = parse_config(MINIMAL | {"train": train | {"num_steps": 300}}, "c").train
    assert [learning_rate(longer, a) for a in range(80)] == rates[:80]
    for decay_steps in (0, 91):
        with pytest.raises(UserError, match=r"train.decay_steps, from 1 to 90"):
            parse_config(MINIMAL | {"train": train | {"decay_steps": decay_steps}}, "c")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_schedule_rises_to_its_peak_and_ends_where_it_should(schedule: str) -> None:
    train = {"num_steps": 100, "warmup_steps": 10, "schedule": schedule, "peak_lr": 0.5}
    config = parse_config(MINIMAL | {"train": train}, "c").train
    rates = [learning_rate(config, applied) for applied in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 if schedule == "constant" else 0.0)

"""The DeepSpeed files that come with mllm: DeepSpeed takes them, and offload computes the same."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from mllm.config import ZeroConfig
from mllm.engine_config import ZERO_CONFIG_DIR, deepspeed_config
from tests.conftest import World
from tests.scenarios import pretrain_config

FILES = sorted(ZERO_CONFIG_DIR.glob("*.json"))
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_deepspeed_knows_every_key_and_batch_sizes_are_not_in_it(path: Path) -> None:
    settings = json.loads(path.read_text())
    zero = settings["zero_optimization"]
    read = DeepSpeedZeroConfig(**zero)
    fields = DeepSpeedZeroConfig.model_fields.items()
    assert set(zero) <= {name for key, field in fields for name in (key, field.alias)}
    assert path.stem.startswith(f"zero{read.stage}")
    assert set(settings) <= {"zero_optimization", "zero_force_ds_cpu_optimizer", "aio"}
    config = pretrain_config(Path("w"), Path("r"))
    config = replace(config, zero=ZeroConfig(zero["stage"], str(path)))
    merged = deepspeed_config(config, "fp32", 2)
    assert merged["train_batch_size"] == 4 and merged["zero_optimization"] == zero


def _losses(world: World, run_dir: Path, overrides: list[str]) -> list[float]:
    values = json.loads(json.dumps(pretrain_config(world.root, run_dir).to_dict()))
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "mllm.cli", "train", str(path), "--num-ranks", "2"]
    done = subprocess.run(
        [*command, *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").open()]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_offload_to_the_cpu_trains_to_the_same_losses(
    world: World, tmp_path: Path, stage: int
) -> None:
    """On 2 ranks, with a dry pass, and resumed from step 3."""
    file = ZERO_CONFIG_DIR / f"zero{stage}_offload.json"
    losses = {}
    for name, overrides in (("plain", []), ("offload", [f"zero.config={file}"])):
        overrides = [f"zero.stage={stage}", "train.schedule=constant", *overrides]
        _losses(world, tmp_path / name, [*overrides, "train.num_steps=3"])
        losses[name] = _losses(world, tmp_path / name, overrides)
    pairs = list(zip(losses["plain"], losses["offload"], strict=True))
    assert len(pairs) == 6 and max(abs(a - b) for a, b in pairs) < 1e-5

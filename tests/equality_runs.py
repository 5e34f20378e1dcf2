"""Runs of one launch for test_equality.py: every ZeRO stage and precision on this many ranks.

    python tests/equality_runs.py WORLD OUT

Nine rows in ten are text, so that for many micro-steps a rank has no picture.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mllm import dist
from mllm.config import Config
from mllm.engine import init_distributed
from mllm.train import train
from tests.scenarios import pretrain_config, with_stage

NUM_STEPS = 20
SETTINGS = [("fp32", stage) for stage in (3, 0, 1, 2)] + [("bf16", stage) for stage in (1, 2, 3)]


def run_config(world: Path, out: Path, precision: str, stage: int, num_ranks: int) -> Config:
    config = pretrain_config(world, out / f"{precision}-zero{stage}-{num_ranks}")
    weights = {"pairs": 0.05, "text": 0.9, "interleaved": 0.025, "vqa": 0.025}
    mixture = [replace(source, weight=weights[source.name]) for source in config.data.mixture]
    config = with_stage(replace(config, data=replace(config.data, mixture=mixture)), stage)
    train = replace(
        config.train, precision=precision, num_steps=NUM_STEPS, checkpoint_every=NUM_STEPS
    )
    return replace(config, train=train)  # micro-batches of one row: 4, 2 or 1 a step and rank


def main(world: Path, out: Path) -> None:
    dist.set_up_environment()
    init_distributed()
    for precision, stage in SETTINGS:
        train(run_config(world, out, precision, stage, dist.world_size()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""What each rank of a launch does: several short runs one after the other, because a launch costs.

    python -m mllm.doctor.ranks WORLD OUT LEGS

WORLD is a folder of `make_world`, OUT gets a run folder for each leg, LEGS is JSON: a list of the
fields of `Leg`.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from mllm import checkpoint, dist
from mllm.config import Config
from mllm.doctor.training import ENGINE_LOSSES, SCORED_ROWS, Leg
from mllm.doctor.world import SAVED_AT, world_config
from mllm.engine import Engine, init_distributed
from mllm.files import write_json
from mllm.stages import build_stage
from mllm.train import train


def main(world: Path, out: Path, legs: list[Leg]) -> int:
    dist.set_up_environment()
    torch.backends.cudnn.allow_tf32 = False  # of convolutions, where it is on by default
    init_distributed()
    for leg in legs:
        run_dir = out / leg.name
        if leg.resumes and dist.rank() == 0:
            _copy_first_half(out / leg.resumes, run_dir)
        dist.barrier()
        config = world_config(world, run_dir, leg.zero_stage, leg.micro_batch_size)
        if code := train(config):
            return code  # stopped by a signal
        if leg.is_scored:
            _score(config)
    return 0


def _copy_first_half(whole: Path, part: Path) -> None:
    shutil.copytree(whole, part)
    for folder in checkpoint.checkpoints(part / "checkpoints"):
        if int(folder.name.removeprefix("step-")) > SAVED_AT:
            shutil.rmtree(folder)


def _score(config: Config) -> None:
    """Losses of the first rows by a new engine that has read DeepSpeed's own files."""
    run_dir = Path(config.run_dir)
    stage = build_stage(config)
    engine = Engine(stage.objective, config, config.train.precision)
    point = checkpoint.resume_point(run_dir)
    assert point is not None, run_dir
    checkpoint.resume(point, engine)
    engine.train(False)
    batch = stage.stream.batch(
        0, rank=dist.rank(), world_size=dist.world_size(), micro_batch_size=SCORED_ROWS
    )
    with torch.no_grad():
        _, losses = engine(batch.to(dist.device()))
    if dist.rank() == 0:
        write_json(run_dir / ENGINE_LOSSES, losses.tolist())


if __name__ == "__main__":
    sys.exit(
        main(Path(sys.argv[1]), Path(sys.argv[2]), [Leg(**x) for x in json.loads(sys.argv[3])])
    )

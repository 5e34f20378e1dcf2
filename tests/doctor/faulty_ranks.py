"""`mllm.doctor.ranks` with faults planted in the code that it runs, each in another leg.

zero2     rank 1 adds nothing in its second micro-step
resumed   goes on without AdamW's moments
zero3     its checkpoint's safetensors hold weights rounded to bf16
zero1     on one rank: the second micro-step counts half as much again
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import mllm.train
from mllm import checkpoint, dist
from mllm.config import Config
from mllm.doctor import ranks
from mllm.doctor.training import Leg
from mllm.engine import Engine

leg = ""  # that runs now
train, backward, resume = mllm.train.train, Engine.backward, checkpoint.resume
full_state_dict = Engine.full_state_dict


def train_leg(config: Config) -> int:
    global leg
    leg = Path(config.run_dir).name
    return train(config)


def backward_or_nothing(self: Engine, loss: torch.Tensor) -> None:
    is_second = self._engine.micro_steps % self.grad_accum_steps == 1
    if leg == "zero2" and dist.rank() == 1 and is_second:
        loss = loss * 0
    if leg == "zero1" and dist.world_size() == 1:
        loss = loss * (1 + 0.5 * is_second)
    backward(self, loss)


def resume_without_moments(folder: Path, engine: Engine) -> Any:
    state = resume(folder, engine)
    if leg == "resumed":
        for moments in engine._optimizer.optimizer.state.values():
            moments["exp_avg"].zero_()
            moments["exp_avg_sq"].zero_()
    return state


def rounded_state_dict(self: Engine, *copies: Any) -> dict[str, torch.Tensor]:
    weights = full_state_dict(self, *copies)
    if leg == "zero3":
        weights = {name: value.bfloat16().float() for name, value in weights.items()}
    return weights


ranks.train = train_leg  # type: ignore[attr-defined]
Engine.backward = backward_or_nothing  # type: ignore[method-assign]
checkpoint.resume = resume_without_moments
Engine.full_state_dict = rounded_state_dict  # type: ignore[method-assign]

if __name__ == "__main__":
    legs = [Leg(**fields) for fields in json.loads(sys.argv[3])]
    sys.exit(ranks.main(Path(sys.argv[1]), Path(sys.argv[2]), legs))

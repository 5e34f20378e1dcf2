"""Runs that go on on another number of ranks or under another ZeRO stage, several in one launch.

    python tests/world_changes.py WORLD OUT LEGS

WORLD is the tiny world of conftest.py, OUT the folder of the runs. LEGS is JSON, a list of
[run, zero stage, precision, earlier run or null, step]: `run` is a copy of the earlier run as it
was at that step, and goes to its end. Beside what a run leaves, `saved-N.pt` in it is what
DeepSpeed says that all ranks together hold at the checkpoint of step N, and `loaded-N.pt` what they
hold after resuming from it. Several ranks are told so by RANK, WORLD_SIZE and their like.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as torch_dist
from torch import nn

import mllm.train
from mllm import checkpoint, dist, engine
from mllm.config import Config
from mllm.engine import Engine, init_distributed
from mllm.saving import Saver
from mllm.stages import Stage
from tests.scenarios import pretrain_config, with_stage

WEIGHT_DECAY = {0.5: 3.0, 1.0: 1.0}  # by lr scale: large, so that losses tell them apart
SKIPPED_STEPS = (1, 3)  # their gradients are not finite: AdamW's count of steps is not the run's


def main(world: Path, out: Path, legs: list[tuple[str, int, str, str | None, int]]) -> None:
    dist.set_up_environment()
    init_distributed()
    plant_two_decays()
    _plant_skipped_steps()
    _plant_frozen_weights()
    _take_snapshots()
    for name, stage, precision, earlier, step in legs:
        if earlier and dist.rank() == 0:
            shutil.copytree(out / earlier, out / name)
            for folder in checkpoint.checkpoints(out / name / "checkpoints"):
                if int(folder.name.removeprefix("step-")) > step:
                    shutil.rmtree(folder)
        dist.barrier()
        config = with_stage(pretrain_config(world, out / name), stage, precision)
        config = replace(config, train=replace(config.train, num_steps=5, checkpoint_every=2))
        mllm.train.train(config)
        dist.barrier()


def plant_two_decays() -> None:
    build = engine.build_optimizer

    def build_with_decays(module: nn.Module, config: Config) -> torch.optim.AdamW:
        optimizer = build(module, config)
        assert len(optimizer.param_groups) == 2
        for group in optimizer.param_groups:
            group["weight_decay"] = WEIGHT_DECAY[group["lr_scale"]]
        return optimizer

    engine.build_optimizer = build_with_decays


def _plant_skipped_steps() -> None:
    backward = Engine.backward

    def backward_or_nan(self: Engine, loss: torch.Tensor) -> None:
        is_skipped = self._engine.global_steps in SKIPPED_STEPS
        backward(self, loss * float("nan") if is_skipped else loss)

    Engine.backward = backward_or_nan  # type: ignore[method-assign]


def _plant_frozen_weights() -> None:
    """A new run has other ones than its seed gives, as after `init_from`; a resumed one loads."""
    build = mllm.train.build_stage

    def build_and_scale(config: Config) -> Stage:
        stage = build(config)
        frozen = [p for p in stage.objective.parameters() if not p.requires_grad]
        assert frozen
        if not (Path(config.run_dir) / "checkpoints").exists():
            for parameter in frozen:
                parameter.data.mul_(1.25)
        return stage

    mllm.train.build_stage = build_and_scale


def _take_snapshots() -> None:
    save, resume = Saver.save, checkpoint.resume

    def save_and_look(self: Saver, held: Engine, state: Any, **rest: Any) -> None:
        _snapshot(held, self._folder.parent / f"saved-{state.step}.pt")
        save(self, held, state, **rest)

    def resume_and_look(folder: Path, held: Engine) -> Any:
        state = resume(folder, held)
        _snapshot(held, folder.parent.parent / f"loaded-{state.step}.pt")
        return state

    Saver.save, checkpoint.resume = save_and_look, resume_and_look  # type: ignore[method-assign]


def _snapshot(held: Engine, path: Path) -> None:
    """Masters, moments, weights that the forward uses, AdamW's steps and groups, of all ranks."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_optimizer_state

    optimizer: Any = held._optimizer
    base = optimizer if held.stage == 0 else optimizer.optimizer
    if held.stage in (1, 2):
        # DeepSpeed 0.19.8 links moments after the first group's first step, when others have none.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    content: dict[str, Any] = {"masters": held.full_state_dict(), "used": {}}
    for name, parameter in held.module.named_parameters():
        with GatheredParameters([parameter], enabled=held.stage == 3):
            content["used"][name] = parameter.detach().clone()
        for key in ("exp_avg", "exp_avg_sq") if parameter.requires_grad else ():
            value = (
                base.state[parameter][key]
                if held.stage == 0
                else safe_get_full_optimizer_state(parameter, key)
            )
            content.setdefault(key, {})[name] = value.clone()
    steps = [float(state["step"]) for state in base.state.values()]
    assert len({id(state["step"]) for state in base.state.values()}) == len(steps)
    everywhere: list[Any] = [steps] * dist.world_size()
    if dist.world_size() > 1:
        torch_dist.all_gather_object(everywhere, steps)
    content["steps"] = sorted({step for steps in everywhere for step in steps})
    content["groups"] = [
        {key: group[key] for key in ("lr_scale", "weight_decay", "betas", "eps")}
        for group in optimizer.param_groups
    ]
    counts = held._engine
    content["counts"] = [counts.global_steps, counts.global_samples, counts.skipped_steps]
    if dist.rank() == 0:
        torch.save(content, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))

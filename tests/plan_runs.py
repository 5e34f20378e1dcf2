"""Short trainings under every ZeRO stage, with what they really hold written to OUT/held-W.json.

    deepspeed --num_accelerators 2 tests/plan_runs.py WORLD OUT
    python tests/plan_runs.py WORLD OUT

WORLD is the tiny world of conftest.py. Bytes are those of storages, each counted once.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from mllm import dist
from mllm.engine import Engine, init_distributed
from mllm.saving import Saver
from mllm.train import train
from tests.scenarios import pretrain_config, with_stage

RUNS = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]


def storage_bytes(tensors: Iterable[Any]) -> int:
    storages = {}
    for tensor in tensors:
        if torch.is_tensor(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def parameter_bytes(engine: Engine) -> int:
    """What DeepSpeed keeps between uses: whole parameters, or in stage 3 each one's own part."""
    parameters = list(engine.module.parameters())
    if engine.stage < 3:
        return storage_bytes(parameters)
    return sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in parameters)


def gradient_bytes(engine: Engine) -> int:
    optimizer = engine._optimizer
    held = [p.grad for p in engine.module.parameters()]
    if engine.stage == 3:
        return storage_bytes([optimizer.grad_partitions_flat_buffer])
    if hasattr(optimizer, "fp32_groups_gradients_flat"):
        return storage_bytes(optimizer.fp32_groups_gradients_flat)
    for groups in (
        getattr(optimizer, "all_grad_tensors", {}),
        getattr(optimizer, "averaged_gradients", {}),
    ):
        held += [tensor for group in groups.values() for tensor in group or []]
    return storage_bytes(held)


def optimizer_bytes(engine: Engine) -> int:
    """Moments, step counts, and fp32 copies that are not the parameters themselves."""
    base = engine._engine.basic_optimizer
    held = [value for state in base.state.values() for value in state.values()]
    copies = [] if engine.stage == 0 else list(base.state)
    own = {p.untyped_storage().data_ptr() for p in engine.module.parameters()}
    if engine.stage == 3:
        own |= {p.ds_tensor.untyped_storage().data_ptr() for p in engine.module.parameters()}
    held += [c for c in copies if c.untyped_storage().data_ptr() not in own]
    return storage_bytes(held)


def main(world: Path, out: Path) -> None:
    dist.set_up_environment()
    init_distributed()
    size, found = dist.world_size(), {}
    micro_step, save = Engine.micro_step, Saver.save

    for precision, stage in RUNS:
        name = f"{precision}-{stage}"
        held: dict[str, int] = {"gradients": 0}

        def watched_step(engine: Engine, held: dict[str, int] = held) -> None:
            micro_step(engine)
            held["gradients"] = max(held["gradients"], gradient_bytes(engine))

        def watched_save(*args: Any, held: dict[str, int] = held, **rest: Any) -> None:
            engine = args[1]
            held |= {"parameters": parameter_bytes(engine), "optimizer": optimizer_bytes(engine)}
            save(*args, **rest)

        Engine.micro_step, Saver.save = watched_step, watched_save  # type: ignore
        config = with_stage(pretrain_config(world, out / f"{name}-{size}"), stage, precision)
        train(replace(config, train=replace(config.train, num_steps=1, checkpoint_every=1)))
        found[name] = held
        dist.barrier()
    if dist.rank() == 0:
        (out / f"held-{size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(paths[0]), Path(paths[1]))

"""Where DeepSpeed (0.19.8) puts parameters, gradients and optimizer states, written down from its
source; tests hold the sums to the tensors of real runs.

Letters: P parameters, T trainable ones, W ranks, e bytes of a parameter in the training precision.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from mllm.checkpoint import TIED
from mllm.config import Config
from mllm.optim import parameter_groups


class Groups(NamedTuple):
    """The elements of each parameter, as the optimizer has them."""

    trainable: list[list[int]]  # one list a parameter group, in its order
    frozen: list[int]

    @property
    def num_trainable(self) -> int:
        return sum(map(sum, self.trainable))

    @property
    def num_all(self) -> int:
        return self.num_trainable + sum(self.frozen)


@dataclass(frozen=True)
class Resident:
    """Bytes that a rank holds from step to step, on its device and, offloaded, in host memory."""

    parameters: int
    gradients: int  # most between the micro-steps of a step
    optimizer: int  # moments, step counts, and fp32 copies of the parameters where it keeps them
    host: int  # offloaded: in the machine's memory, for this rank
    largest_part: int  # of one parameter group, in elements: what an optimizer step works on


ZERO_DEFAULTS = {  # deepspeed/runtime/zero/config.py
    "reduce_bucket_size": 5e8,
    "sub_group_size": 1e9,
    "stage3_prefetch_bucket_size": 5e7,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_max_reuse_distance": 1e9,
}
STAGE0_BUCKET = 500_000_000  # elements; DeepSpeedEngine.buffered_allreduce_fallback


def parameter_numels(model: nn.Module, config: Config) -> Groups:
    groups = [[p.numel() for p in group["params"]] for group in parameter_groups(model, config)]
    return Groups(groups, [p.numel() for p in model.parameters() if not p.requires_grad])


def setting(settings: dict[str, Any], name: str) -> int:
    """An integer of `zero_optimization`, or DeepSpeed's default."""
    return int(settings["zero_optimization"].get(name, ZERO_DEFAULTS[name]))


def offloads(settings: dict[str, Any], what: str) -> bool:
    """Whether `offload_optimizer` or `offload_param` names a device."""
    return (settings["zero_optimization"].get(what) or {}).get("device", "none") != "none"


def resident(
    groups: Groups, settings: dict[str, Any], precision: str, world_size: int, rank: int = 0
) -> Resident:
    """Where DeepSpeed 0.19.8 places things. AdamW has two fp32 moments and a step count of 4 bytes.

    stage 0             parameters eP, gradients eT (`p.grad`), moments 8T + 4 a tensor.
    stages 1, 2         DeepSpeedZeroOptimizer (zero/stage_1_and_2.py): each group is flattened and
                        padded to 2W elements; a rank's part is 1/W of it. Parameters e(padded +
                        frozen); an fp32 copy of the part, in fp32 training too (it is cloned);
                        moments 8 a part + 4 a group.
    gradients, stage 1  fp32: whole, 4T; fp16: whole in fp32 (`grad_accum`), 4T.
    gradients, stage 2  fp32: every parameter that the part touches, whole (`grads_in_partition`);
                        fp16 and bf16: the part in fp32 (`_build_compact_grad_partition_buffer`).
    stage 1 and bf16    BF16_Optimizer (bf16_optimizer.py), which the engine takes for fp32
                        accumulation unless the optimizer is offloaded: whole padded groups of fp32
                        gradients.
    stage 3             zero/stage3.py: ceil(n / W) of each parameter, frozen ones too; an fp32 copy
                        of trainable parts, in fp32 training too (it would share them, but compares
                        a device with its name); gradients one fp32 buffer of all trainable parts;
                        moments 8 a part + 4 a subgroup of `sub_group_size`.

    Offload of the optimizer moves its states, and gradients (as one fp32 part), to the host;
    offload of parameters (stage 3) moves those parts too.
    """
    stage = settings["zero_optimization"]["stage"]
    e = 4 if precision == "fp32" else 2
    if stage == 0:
        states = 8 * groups.num_trainable + 4 * sum(map(len, groups.trainable))
        largest = max(max(group) for group in groups.trainable)
        return Resident(e * groups.num_all, e * groups.num_trainable, states, 0, largest)
    if stage == 3:
        parts = [[ceil_div(n, world_size) for n in group] for group in groups.trainable]
        held = sum(map(sum, parts))
        frozen = sum(ceil_div(n, world_size) for n in groups.frozen)
        subgroups = [
            s for part in parts for s in _subgroups(part, setting(settings, "sub_group_size"))
        ]
        optimizer = 12 * held + 4 * len(subgroups)
        parameters, gradients, largest = e * (held + frozen), 4 * held, max(subgroups)
    else:
        padded = [ceil_div(sum(g), 2 * world_size) * 2 * world_size for g in groups.trainable]
        parts_of = [size // world_size for size in padded]
        held, largest = sum(parts_of), max(parts_of)
        parameters = e * (sum(padded) + sum(groups.frozen))
        optimizer = 12 * held + 4 * len(padded)
        if offloads(settings, "offload_optimizer"):
            gradients = 4 * held
        elif stage == 1 and precision == "bf16":
            gradients = 4 * sum(padded)
        elif stage == 1:
            gradients = 4 * groups.num_trainable
        elif precision == "fp32":
            gradients = 4 * sum(
                _touched(group, part, rank)
                for group, part in zip(groups.trainable, parts_of, strict=True)
            )
        else:
            gradients = 4 * held
    host = 0
    if offloads(settings, "offload_optimizer"):
        host, optimizer, gradients = optimizer + gradients, 0, 0
    if stage == 3 and offloads(settings, "offload_param"):
        host, parameters = host + parameters, 0
    return Resident(parameters, gradients, optimizer, host, largest)


def ceil_div(n: int, parts: int) -> int:
    return -(-n // parts)


def _subgroups(parts: list[int], limit: int) -> list[int]:
    """Elements of a group's subgroups: closed once they hold `limit` (_create_fp16_sub_groups)."""
    if limit >= sum(parts):
        return [sum(parts)]
    sizes = [0]
    for part in parts:
        if sizes[-1] >= limit:
            sizes.append(0)
        sizes[-1] += part
    return sizes


def _touched(numels: list[int], part: int, rank: int) -> int:
    """Elements of the parameters that reach into a rank's part (get_partition_info)."""
    first, stop = part * rank, part * (rank + 1)
    total = start = 0
    for numel in numels:
        if start < stop and start + numel > first:
            total += numel
        start += numel
    return total


def communication(
    groups: Groups, settings: dict[str, Any], precision: str, world_size: int, *, on_cpu: bool
) -> int:
    """Bytes of buckets on the device, and, in stage 3, of parameters gathered for use.

    A CPU's buckets are resident only as far as they are filled. Stage 3 keeps parameters of at most
    `stage3_param_persistence_threshold` elements whole, and others as long as they are used again
    within `stage3_max_reuse_distance` elements, forward and back: half of that at most.
    """
    stage, e = settings["zero_optimization"]["stage"], 4 if precision == "fp32" else 2
    num = groups.num_trainable
    if stage == 0:
        return e * min(num, STAGE0_BUCKET)
    bucket = setting(settings, "reduce_bucket_size")
    if stage == 1 and precision == "bf16" and not offloads(settings, "offload_optimizer"):
        return 4 * min(num, STAGE0_BUCKET)  # BF16_Optimizer reduces through the engine, flattened
    if on_cpu:
        bucket = min(bucket, num)
    num_buckets = 1 + bool(settings["zero_optimization"].get("overlap_comm"))
    width = 4 if stage == 1 else e
    if stage < 3:
        return width * bucket * num_buckets
    gathered = 0
    if world_size > 1:
        numels = [n for group in [*groups.trainable, groups.frozen] for n in group]
        threshold = setting(settings, "stage3_param_persistence_threshold")
        small = sum(n for n in numels if n <= threshold)
        large = sum(numels) - small
        in_flight = setting(settings, "stage3_prefetch_bucket_size") + max(numels)
        reused = setting(settings, "stage3_max_reuse_distance") // 2
        gathered = small + min(large, reused + in_flight)
    return e * bucket * num_buckets + e * gathered


def checkpoint_tensors(
    model: nn.Module, groups: Groups, settings: dict[str, Any], precision: str, world_size: int
) -> dict[str, int]:
    """Bytes of tensors in one checkpoint, over all ranks, by file kind (mllm/checkpoint.py).

    `model.safetensors` has float32 weights without the tied head. DeepSpeed's model states are the
    parameters in the training precision (stage 3: frozen parts only), and hold the optimizer's
    states in stage 0; each rank writes its optimizer states besides.
    """
    stage, e = settings["zero_optimization"]["stage"], 4 if precision == "fp32" else 2
    names = {name for name, _ in model.named_parameters() if name != TIED}
    weights = 4 * sum(p.numel() for name, p in model.named_parameters() if name in names)
    held = resident(groups, _on_device(settings), precision, world_size)
    if stage == 0:
        states, parameters = held.optimizer, held.parameters
    elif stage == 3:
        states = held.optimizer * world_size
        parameters = e * world_size * sum(ceil_div(n, world_size) for n in groups.frozen)
    else:
        states, parameters = held.optimizer * world_size, held.parameters
    return {"weights": weights, "module": parameters, "optimizer": states}


def _on_device(settings: dict[str, Any]) -> dict[str, Any]:
    """The same without offload, which changes nothing on disk."""
    kept = {k: v for k, v in settings["zero_optimization"].items() if not k.startswith("offload")}
    return {**settings, "zero_optimization": kept}

"""What a run will need, from its config alone: bytes on each rank, operations, time and disk.

The model is built and one step of it is run on tensors that have shapes and no data, so the paper's
1.6B plans in seconds on a laptop. Where DeepSpeed (0.19.8) puts parameters, gradients and optimizer
states is written down here from its source; tests hold the sums to the tensors of real runs.

Letters: P parameters, T trainable ones, W ranks, e bytes of a parameter in the training precision.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from mllm.checkpoint import TIED
from mllm.config import Config
from mllm.engine import deepspeed_config, resolve_precision
from mllm.errors import UserError
from mllm.model.flops import forward_flops, step_flops
from mllm.model.init import count_parameters
from mllm.optim import parameter_groups
from mllm.step_memory import StepMemory, build_empty, step_memory

GIB = 2**30


class Device(NamedTuple):
    """Peak operations per second of dense matrix products, by precision, and memory in bytes."""

    memory: int
    flops: dict[str, float]


# Makers' data sheets, dense (without sparsity). fp32 is what `torch` multiplies with by default:
# without TF32. V100 and its successors: SXM. V100 has no bf16.
#   V100     NVIDIA V100 data sheet (January 2020): 125 / 15.7 TFLOP/s
#   A100     NVIDIA A100 data sheet (June 2021): 312 / 19.5
#   H100     NVIDIA H100 data sheet (2023): 1,979 with sparsity, 989 dense / 67
#   H200     NVIDIA H200 data sheet (2024): as H100, 141 GB
#   B200     NVIDIA DGX B200 data sheet (2024): 36 PFLOP/s bf16 with sparsity over 8 GPUs, 2,250
#            dense each / 75; 180 GB
#   L4       NVIDIA L4 data sheet (2023): 242 with sparsity, 121 dense / 30.3
#   RTX 4090 NVIDIA Ada architecture white paper (2022): 165.2 with fp32 accumulation / 82.6
#   cpu      the two cores with AVX-512 that this project is tested on: products of 2048^3 ran at
#            85 to 420 GFLOP/s by load and precision; 24 GiB. Others: `make bench ROWS=mfu`.
DEVICES = {
    "V100": Device(32 * GIB, {"fp16": 125e12, "fp32": 15.7e12}),
    "A100-40": Device(40 * GIB, {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}),
    "A100-80": Device(80 * GIB, {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}),
    "H100": Device(80 * GIB, {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}),
    "H200": Device(141 * 10**9, {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}),
    "B200": Device(180 * 10**9, {"bf16": 2250e12, "fp16": 2250e12, "fp32": 75e12}),
    "L4": Device(24 * GIB, {"bf16": 121e12, "fp16": 121e12, "fp32": 30.3e12}),
    "RTX4090": Device(24 * GIB, {"bf16": 165.2e12, "fp16": 165.2e12, "fp32": 82.6e12}),
    "cpu": Device(24 * GIB, {"bf16": 300e9, "fp32": 130e9}),
}


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
        parts = [[_ceil(n, world_size) for n in group] for group in groups.trainable]
        held = sum(map(sum, parts))
        frozen = sum(_ceil(n, world_size) for n in groups.frozen)
        subgroups = [
            s for part in parts for s in _subgroups(part, setting(settings, "sub_group_size"))
        ]
        optimizer = 12 * held + 4 * len(subgroups)
        parameters, gradients, largest = e * (held + frozen), 4 * held, max(subgroups)
    else:
        padded = [_ceil(sum(g), 2 * world_size) * 2 * world_size for g in groups.trainable]
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


def _ceil(n: int, parts: int) -> int:
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
        parameters = e * world_size * sum(_ceil(n, world_size) for n in groups.frozen)
    else:
        states, parameters = held.optimizer * world_size, held.parameters
    return {"weights": weights, "module": parameters, "optimizer": states}


def _on_device(settings: dict[str, Any]) -> dict[str, Any]:
    """The same without offload, which changes nothing on disk."""
    kept = {k: v for k, v in settings["zero_optimization"].items() if not k.startswith("offload")}
    return {**settings, "zero_optimization": kept}


# A checkpoint's files beyond their tensors, as measured: each pickle's own text, what a stored
# tensor costs in the zip archive, what a name and shape cost.
PICKLE_BYTES, STORED_BYTES, NAMED_BYTES = 16_000, 260, 158
SCRIPT_BYTES = 34_500  # zero_to_fp32.py, which DeepSpeed puts beside ZeRO's files
CAPTION_LEN = 32  # tokens beside each picture, where nobody says how many pictures a row has
# Resident memory of a CPU process beyond its tensors, and what the allocator keeps of those freed,
# as a factor: fitted on the FITTED sizes of mllm/bench/plan.py alone, where the allocator's whims
# leave errors of up to a quarter; `make bench ROWS=plan` shows them and those of other sizes.
CPU_BASE_BYTES, CPU_FRAGMENTATION = 128_500_000, 1.645
CPU_STAGE3_BYTES = 33_000_000  # besides, ZeRO-3's hooks and trace
CUDA_CONTEXT_BYTES = 1 * GIB  # kernels and libraries: an allowance, not measured here


def plan(
    config: Config,
    *,
    world_size: int,
    device: str,
    mfu: float,
    images_per_row: int | None = None,
    zero_extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that `mllm plan` says, but for the advice.

    Args:
        mfu: share of the device's peak that the step's operations reach.
        images_per_row: pictures in every row; None: as many as fit with short captions.
        zero_extra: settings put into `zero_optimization`.

    Raises:
        UserError: what training would refuse; an unknown device, or a precision it lacks.
    """
    machine, precision = _device(device), _precision(config, device)
    if precision not in machine.flops:
        raise UserError(
            f"train.precision {precision}: {device} does not multiply it; use "
            f"{' or '.join(machine.flops)}"
        )
    settings = deepspeed_config(config, precision, world_size)
    settings["zero_optimization"].update(zero_extra or {})
    grad_accum_steps = settings["gradient_accumulation_steps"]
    if precision == "fp16" and config.zero.stage == 0:
        raise UserError("train.precision fp16 with zero.stage 0: DeepSpeed refuses it; use stage 1")
    if config.stage == "vision" and grad_accum_steps != 1:
        raise UserError(
            f"stage vision compares all pairs of a step: train.global_batch_size "
            f"{config.train.global_batch_size} must be {world_size} ranks x train.micro_batch_size "
            f"{config.train.micro_batch_size} = {world_size * config.train.micro_batch_size}"
        )
    model, on_cpu = build_empty(config), device == "cpu"
    groups = parameter_numels(model, config)
    images, assumed = _images_per_row(config, images_per_row)
    scored_share = 1 - images * (config.model.num_latents + 2) / config.model.seq_len
    rows = config.train.micro_batch_size
    step = step_memory(
        config,
        precision,
        rows * images,
        max(1, int(rows * config.model.seq_len * scored_share)),
        on_cpu=on_cpu,
    )
    held = max(
        (resident(groups, settings, precision, world_size, r) for r in range(min(world_size, 64))),
        key=lambda each: each.parameters + each.gradients + each.optimizer,
    )
    memory = _memory(held, step, groups, settings, precision, world_size, on_cpu=on_cpu)
    flops = _flops(config, images, scored_share, world_size)
    seconds = flops["total"] / (machine.flops[precision] * mfu * world_size)
    checkpoint = checkpoint_bytes(model, groups, settings, precision, world_size)
    global_rows = config.train.global_batch_size
    is_vision = config.stage == "vision"
    positions = config.contrastive.text_len if is_vision else config.model.seq_len
    return {
        "stage": config.stage,
        "device": device,
        "device_bytes": machine.memory,
        "world_size": world_size,
        "precision": precision,
        "zero_stage": config.zero.stage,
        "micro_batch_size": rows,
        "parameters": {name: list(n) for name, n in count_parameters(model).items() if n[0]},
        "assumed": assumed,
        "step": {
            "rows": global_rows,
            "tokens": global_rows * positions,
            "images": global_rows * images,
            "grad_accum_steps": grad_accum_steps,
            "num_steps": config.train.num_steps,
        },
        "flops_per_step": flops,
        "memory": memory,
        "fits": memory["peak"] <= machine.memory,
        "time": {
            "mfu": mfu,
            "peak_flops": machine.flops[precision],
            "seconds_per_step": seconds,
            "seconds": seconds * config.train.num_steps,
        },
        "checkpoint": {
            **checkpoint,
            "kept": config.train.keep_checkpoints,
            "run_bytes": checkpoint["bytes"] * (config.train.keep_checkpoints + 1),
        },
    }


def _device(name: str) -> Device:
    if name not in DEVICES:
        raise UserError(f"--device {name}: unknown; one of {', '.join(DEVICES)}")
    return DEVICES[name]


def _precision(config: Config, device: str) -> str:
    """What `auto` becomes there: on a GPU always bf16."""
    if device == "cpu":
        return resolve_precision(config.train.precision)
    return "bf16" if config.train.precision == "auto" else config.train.precision


def _images_per_row(config: Config, given: int | None) -> tuple[int, str]:
    """Pictures in a row, and where the number comes from."""
    if config.stage == "vision":
        return 1, "one a pair"
    span = config.model.num_latents + 3
    if given is None:
        fitting = max(1, config.model.seq_len // (span + CAPTION_LEN))
        return fitting, f"assumed: {fitting} pictures in each row, {CAPTION_LEN} tokens beside each"
    if given * span > config.model.seq_len:
        raise UserError(
            f"--images-per-row {given}: {span} positions each, more than model.seq_len "
            f"{config.model.seq_len}; at most {config.model.seq_len // span} fit"
        )
    return given, "as --images-per-row says"


def _memory(
    held: Resident,
    step: StepMemory,
    groups: Groups,
    settings: dict[str, Any],
    precision: str,
    world_size: int,
    *,
    on_cpu: bool,
) -> dict[str, int]:
    """Bytes by part, and the most of a rank at any time.

    The peak is that of three moments: a backward pass; an optimizer step, which works on a flat
    copy of a group's gradients and one temporary of its size more (two on the CPU, where AdamW is
    not fused); on the CPU also a checkpoint, for which rank 0 copies the weights.
    """
    if on_cpu:  # host memory is the same memory
        held = replace(held, optimizer=held.optimizer + held.host, host=0)
    static = held.parameters + held.optimizer
    bucket = communication(groups, settings, precision, world_size, on_cpu=on_cpu)
    backward = held.gradients + step.peak + bucket
    temporaries = 4 * held.largest_part * (3 if on_cpu else 2)
    update = held.gradients + (0 if held.host else temporaries) + bucket
    save = 4 * groups.num_all if on_cpu else 0
    moment = max(backward, update, save)
    if on_cpu:
        stage3 = CPU_STAGE3_BYTES * (settings["zero_optimization"]["stage"] == 3)
        peak = round(CPU_BASE_BYTES + stage3 + static + CPU_FRAGMENTATION * moment)
    else:
        peak = CUDA_CONTEXT_BYTES + static + moment
    named = held.gradients + step.activations + step.logits + bucket
    return {
        "parameters": held.parameters,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "activations": step.activations,
        "logits": step.logits,
        "communication": bucket,
        "other": peak - static - named,
        "peak": peak,
        "host": held.host,
    }


def _flops(config: Config, images: int, scored_share: float, world_size: int) -> dict[str, int]:
    """Operations of a step over all ranks, by part. A row counts as one document: the most."""
    rows, model = config.train.global_batch_size, config.model
    if config.stage == "vision":
        width, dim = model.vision.width, config.contrastive.embed_dim
        encoder = forward_flops(model, [], 1, 0)["vision"]
        text = 2 * config.contrastive.text_len * dim + 2 * 2 * 2 * dim * dim
        flops = {
            "vision": 3 * rows * encoder,
            "image_projection": 3 * rows * 2 * width * dim,
            "text": 3 * rows * text,
            "similarity": 3 * 2 * 2 * rows * rows * dim,
        }
    else:
        scored = round(rows * model.seq_len * scored_share)
        lengths = [model.seq_len] * rows
        flops = step_flops(model, lengths, rows * images, scored, config.train.train_last_blocks)
    return {**flops, "total": sum(flops.values())}


def checkpoint_bytes(
    model: nn.Module, groups: Groups, settings: dict[str, Any], precision: str, world_size: int
) -> dict[str, int]:
    """Tensors of a checkpoint exactly, and all of its files to within some kilobytes."""
    tensors = checkpoint_tensors(model, groups, settings, precision, world_size)
    stage = settings["zero_optimization"]["stage"]
    named = sum(1 for _ in model.parameters())
    num_trainable = sum(map(len, groups.trainable))
    if stage == 0:
        pickles, stored = 1, named + 3 * num_trainable
    else:
        states = world_size * (len(groups.trainable) * 4 + 1)
        copies = world_size if stage == 3 else 1
        pickles, stored = world_size + copies, len(groups.frozen) * copies + states
        named *= copies
    text = pickles * PICKLE_BYTES + stored * STORED_BYTES + named * NAMED_BYTES
    text += SCRIPT_BYTES * (stage > 0)
    total = sum(tensors.values()) + _safetensors_header(model) + text
    return {**tensors, "bytes": total}


def _safetensors_header(model: nn.Module) -> int:
    """Bytes before the first tensor: a length of 8, then JSON padded to a multiple of 8."""
    header, start = {}, 0
    for name, parameter in sorted(model.named_parameters()):
        stop = start + 4 * parameter.numel()
        header[name] = {
            "dtype": "F32",
            "shape": list(parameter.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    return 8 + _ceil(len(json.dumps(header, separators=(",", ":"))), 8) * 8


def advise(config: Config, **question: Any) -> str:
    """The first change that makes the run fit, found by planning with it."""
    for words, changed, extra in _changes(config):
        try:
            result = plan(changed, **question, zero_extra=extra)
        except UserError:
            continue  # training would refuse it
        if result["fits"]:
            return f"would fit with {words}: {result['memory']['peak'] / GIB:.2f} GiB"
    return (
        "no smaller micro-batch, ZeRO-3, checkpointing and offload together make it fit: more ranks"
    )


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OFFLOAD_WORDS = (
    'zero.config=FILE, a copy of deepspeed_configs/zero{stage}.json with "offload_optimizer": '
    '{{"device": "cpu"}} in zero_optimization and "zero_force_ds_cpu_optimizer": false beside it'
)


def _changes(config: Config) -> Iterator[tuple[str, Config, dict[str, Any]]]:
    """Changes in the order of what they cost: each alone, then together."""

    def with_train(base: Config, **values: Any) -> Config:
        return replace(base, train=replace(base.train, **values))

    def with_stage(base: Config, stage: Any) -> Config:
        return replace(base, zero=replace(base.zero, stage=stage, config=None))

    rows = config.train.micro_batch_size
    smaller = [n for n in range(rows - 1, 0, -1) if rows % n == 0]
    stages = range(config.zero.stage + 1, 4)
    modes = {"none": ("selective", "full"), "selective": ("full",), "full": ()}
    kinds = modes[config.train.activation_checkpointing] if config.stage != "vision" else ()
    if config.stage != "vision":  # whose micro-batch is the step's pairs
        for n in smaller:
            yield f"train.micro_batch_size={n}", with_train(config, micro_batch_size=n), {}
    for stage in stages:
        yield f"zero.stage={stage}", with_stage(config, stage), {}
    for kind in kinds:
        words = f"train.activation_checkpointing={kind}"
        yield words, with_train(config, activation_checkpointing=kind), {}
    least, together = config, list[str]()
    if config.stage != "vision" and smaller:
        least = with_train(least, micro_batch_size=1)
        together.append("train.micro_batch_size=1")
    if kinds:
        least = with_train(least, activation_checkpointing="full")
        together.append("train.activation_checkpointing=full")
        yield " ".join(together), least, {}
    for stage in stages:
        yield " ".join([*together, f"zero.stage={stage}"]), with_stage(least, stage), {}
    for stage in range(max(1, config.zero.stage), 4):
        offload = OFFLOAD_WORDS.format(stage=stage)
        chosen = [] if stage == config.zero.stage else [f"zero.stage={stage}"]
        yield " ".join([*together, *chosen, offload]), with_stage(least, stage), OFFLOAD

"""What a run will need, from its config alone: bytes on each rank, operations, time and disk.

The model is built and one step of it is run on tensors that have shapes and no data, so the paper's
1.6B plans in seconds on a laptop. What DeepSpeed keeps is in zero_memory.py.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from mllm.config import Config
from mllm.devices import GIB, device_named
from mllm.engine_config import deepspeed_config, resolve_precision
from mllm.errors import UserError
from mllm.model.flops import step_flops
from mllm.model.init import count_parameters
from mllm.stages.contrast import pair_flops
from mllm.step_memory import StepMemory, build_empty, step_memory
from mllm.zero_memory import (
    Groups,
    Resident,
    ceil_div,
    checkpoint_tensors,
    communication,
    parameter_numels,
    resident,
)

# A checkpoint's files beyond their tensors, as measured: each pickle's own text, what a stored
# tensor costs in the zip archive, what a name and shape cost.
PICKLE_BYTES, STORED_BYTES, NAMED_BYTES = 16_000, 260, 158
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
    machine, precision = device_named(device), _precision(config, device)
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
    num_trainable = groups.num_trainable
    held = max(
        (resident(groups, settings, precision, world_size, r) for r in range(min(world_size, 64))),
        key=lambda each: each.parameters + each.gradients + each.optimizer,
    )
    if config.train.ema_decay:  # of what the rank keeps in fp32; padding is left out
        shared_by = world_size if config.zero.stage else 1
        held = replace(held, optimizer=held.optimizer + 4 * ceil_div(num_trainable, shared_by))
    memory = _memory(held, step, groups, settings, precision, world_size, on_cpu=on_cpu)
    flops = _flops(config, images, scored_share, world_size)
    seconds = flops["total"] / (machine.flops[precision] * mfu * world_size)
    checkpoint = checkpoint_bytes(model, groups, settings, precision, world_size)
    if config.train.ema_decay:
        checkpoint["average"] = 4 * num_trainable
        checkpoint["bytes"] += checkpoint["average"]
    copied = _copied_bytes(config, checkpoint, precision, world_size)
    if on_cpu:
        memory["other"] += copied
        memory["peak"] += copied
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
            "copied": copied,
            "kept": config.train.keep_checkpoints,
            "run_bytes": checkpoint["bytes"] * (config.train.keep_checkpoints + 1),
        },
    }


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
        flops = pair_flops(config, rows)
    else:
        scored = round(rows * model.seq_len * scored_share)
        lengths = [model.seq_len] * rows
        flops = step_flops(model, lengths, rows * images, scored, config.train.train_last_blocks)
    return {**flops, "total": sum(flops.values())}


def _copied_bytes(
    config: Config, checkpoint: dict[str, int], precision: str, world_size: int
) -> int:
    """Host memory of rank 0 for what it writes beside training (snapshot.py).

    The last checkpoint of a run is written without a copy.
    """
    if (
        not config.train.async_checkpoints
        or config.train.num_steps <= config.train.checkpoint_every
    ):
        return 0
    stage = config.zero.stage
    optimizer = ceil_div(checkpoint["optimizer"], world_size if stage else 1)
    module = ceil_div(checkpoint["module"], world_size if stage == 3 else 1)
    is_shared = precision == "fp32" and stage < 3  # the module's states are these weights
    return optimizer + module + (0 if is_shared else checkpoint["weights"])


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
    return 8 + ceil_div(len(json.dumps(header, separators=(",", ":"))), 8) * 8


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

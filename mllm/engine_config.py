"""What the engine is built from: precision, kernels and DeepSpeed's settings, without deepspeed."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch

from mllm.config import Config, Precision
from mllm.errors import UserError

ZERO_CONFIG_DIR = Path(__file__).resolve().parent.parent / "deepspeed_configs"


def resolve_precision(precision: Precision) -> Precision:
    """`auto` becomes bf16 where the hardware multiplies it natively, fp32 elsewhere.

    A CPU without AVX-512-BF16 or AMX emulates bf16: a 2048^3 product was five times slower than
    in fp32 on such a machine.
    """
    if torch.cuda.is_available():
        return "bf16" if precision == "auto" else precision
    if precision == "fp16":
        raise UserError("train.precision fp16 needs an accelerator; use bf16, fp32 or auto")
    if precision == "auto":
        is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if is_native else "fp32"
    return precision


def check_attention_backend(config: Config, precision: Precision) -> None:
    """What `train.attention_backend` needs, told before anything is built.

    Args:
        config: of the run.
        precision: resolved, so never `auto`.

    Raises:
        UserError: its library or a GPU is missing, or its kernels lack the precision.
    """
    backend = config.train.attention_backend
    if config.stage == "vision" or backend == "sdpa":
        return  # only packed rows have a backend
    if importlib.util.find_spec(backend) is None:
        problem = "is not installed; pip install 'mllm[gpu]'"
    elif not torch.cuda.is_available():
        problem = "needs a CUDA GPU and there is none"
    elif backend == "flash_attn" and precision == "fp32":
        problem = "has no fp32 kernels; use train.precision bf16 or fp16"
    else:
        return
    raise UserError(f"train.attention_backend {backend} {problem}, or use sdpa")


def set_determinism(is_deterministic: bool) -> None:
    """Whether kernels must add up in one order. Not after the first product on a GPU.

    Torch's own attention, flash-attn (by `attention`) and xformers follow torch's switch.
    """
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with the first product
    torch.use_deterministic_algorithms(is_deterministic)  # what has no such kernel raises
    torch.backends.cudnn.deterministic = is_deterministic


def zero_settings(config: Config) -> dict[str, Any]:
    """The DeepSpeed file of `zero.stage`, or `zero.config`, checked to name the same stage."""
    path = Path(config.zero.config or ZERO_CONFIG_DIR / f"zero{config.zero.stage}.json")
    try:
        settings = json.loads(path.read_text())
        stage = settings.get("zero_optimization", {}).get("stage")
    except OSError as error:
        raise UserError(f"zero.config {path}: {error.strerror}; name another file") from None
    except ValueError as error:
        raise UserError(f"zero.config {path}: not JSON ({error})") from None
    except AttributeError:
        raise UserError(
            f"zero.config {path}: not a DeepSpeed config; see {ZERO_CONFIG_DIR}"
        ) from None
    if stage != config.zero.stage:
        raise UserError(f"zero.stage is {config.zero.stage} but {path} has stage {stage}")
    return settings


def deepspeed_config(config: Config, precision: str, world_size: int) -> dict[str, Any]:
    """What DeepSpeed gets: the ZeRO file plus the batch, precision and clipping of our config.

    Raises:
        UserError: ranks x micro_batch_size does not divide the global batch; bf16 with stage 0.
    """
    train = config.train
    rows = world_size * train.micro_batch_size
    if train.global_batch_size % rows:
        below = train.global_batch_size // rows * rows
        nearest = " or ".join(str(size) for size in (below, below + rows) if size)
        raise UserError(
            f"train.global_batch_size {train.global_batch_size} is no multiple of {world_size} "
            f"ranks x train.micro_batch_size {train.micro_batch_size}; "
            f"use {nearest}"
        )
    if precision != "fp32" and config.zero.stage == 0:
        raise UserError(
            f"train.precision {precision} with zero.stage 0 has no fp32 gradient accumulation in "
            "DeepSpeed; use zero.stage 1, or fp32"
        )
    settings = zero_settings(config)
    offload = settings["zero_optimization"].get("offload_optimizer") or {}
    if train.ema_decay and offload.get("device") == "nvme":
        raise UserError(
            "train.ema_decay averages weights that a rank holds in memory, not on NVMe; take it "
            "away, or offload_optimizer to nvme"
        )
    if train.activation_checkpointing == "selective" and config.zero.stage == 3:
        # DeepSpeed's own linear adds the bias in place, to a product that is kept.
        settings["zero_optimization"]["memory_efficient_linear"] = False
    settings.update(
        train_batch_size=train.global_batch_size,
        train_micro_batch_size_per_gpu=train.micro_batch_size,
        gradient_accumulation_steps=train.global_batch_size // rows,
        gradient_clipping=train.gradient_clip,
        steps_per_print=10**9,  # metrics.jsonl has every step
        zero_allow_untested_optimizer=True,
    )
    if precision != "fp32":
        settings[precision] = {"enabled": True}
        # By default micro-steps add up in bf16 and small gradients are lost.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings

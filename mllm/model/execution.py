"""How a training step runs the decoder's layers: none of it changes what they compute.

Letters: as in decoder.py.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

Checkpointing = Literal["none", "selective", "full"]

# Products of matrices, and attention of every backend: what `selective` keeps. All else (norms,
# GELU, rotations, copies) is computed again in the backward pass. By name: the operators of
# flash-attn (2.7 and later) and xformers (0.0.35) exist only once those are imported.
KEPT = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "flash_attn::_flash_attn_varlen_forward",
        "xformers_flash::flash_fwd",
        "xformers_flash3::flash_fwd",
        "aten::_efficient_attention_forward",  # xformers' CUTLASS kernel
    }
)


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    is_kept = operation.name() in KEPT
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


def _selective() -> tuple[AbstractContextManager, AbstractContextManager]:
    # Its ZeRO-3 form adds the bias to a kept product in place: gradients came out wrong.
    if F.linear is not torch._C._nn.linear:
        raise RuntimeError(
            "activation_checkpointing selective needs torch's own linear; set DeepSpeed's "
            "zero_optimization.memory_efficient_linear to false"
        )
    return create_selective_checkpoint_contexts(_policy)


def run_block(block: Callable[..., torch.Tensor], mode: Checkpointing, *args: Any) -> torch.Tensor:
    """`block(*args)`, its activations kept (`none`), in part, or only its inputs (`full`).

    Dropout draws the same numbers in the second computation: torch's generators are put back.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return block(*args)
    context_fn = _selective if mode == "selective" else noop_context_fn
    return checkpoint(block, *args, use_reentrant=False, context_fn=context_fn)

"""Summed cross-entropy over scored positions, without ever holding all logits.

Letters: N scored positions, D model_dim, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CHUNK_LOGITS = 2**25  # logits that exist at one time: 128 MiB in fp32, whatever V and N are
CPU_CHUNK_ROWS = 512  # a small vocabulary's chunk then stays in the processor's cache
SCALED_ROWS = 4096  # of a gradient that are in float32 at one time while it is scaled


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes both gradients while the chunk's logits are there, so nothing is computed twice."""

    @staticmethod
    def forward(ctx, hidden, weight, target_ids):  # type: ignore[no-untyped-def]
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        losses, *grads = _losses_and_gradients(hidden, weight, target_ids, needs_grad)
        if needs_grad:
            ctx.save_for_backward(*grads)
            ctx.dtype = weight.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad_sum, _):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            _scaled(grad_hidden, grad_sum, grad_hidden.dtype),
            _scaled(grad_weight, grad_sum, ctx.dtype),
            None,
        )


def _losses_and_gradients(
    hidden: torch.Tensor, weight: torch.Tensor, target_ids: torch.Tensor, needs_grad: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Losses (N,) float32, and the gradients of their sum: (N, D), and (V, D) summed in float32."""
    fused = fused_kernel(hidden.device)
    if fused is not None:
        losses, _, _, _, grad_hidden, grad_weight, _ = fused(
            hidden,
            weight,
            target_ids,
            reduction="none",
            accum_dtype=torch.float32,
            compute_gradients=needs_grad,
            weight_requires_grad=needs_grad,
        )
        return losses, grad_hidden, grad_weight
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    grad_hidden = grad_weight = None
    if needs_grad:
        grad_hidden = torch.empty_like(hidden)
        # float32: many chunks add up here, and bf16 would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    size = max(1, CHUNK_LOGITS // len(weight))
    if hidden.device.type == "cpu":
        size = min(size, CPU_CHUNK_ROWS)
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        targets = target_ids[part, None]  # (chunk, 1)
        logits = (hidden[part] @ weight.T).float()  # (chunk, V)
        log_probs = F.log_softmax(logits, -1)  # one pass; logsumexp would take four
        del logits
        losses[part] = -log_probs.gather(1, targets)[:, 0]
        if grad_hidden is not None and grad_weight is not None:
            grad_logits = log_probs.exp_()  # probabilities, less 1 at the target
            grad_logits.scatter_add_(1, targets, grad_logits.new_full(targets.shape, -1.0))
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight.dtype == hidden.dtype:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            else:
                grad_weight += grad_logits.T @ hidden[part]
            del grad_logits
        del log_probs  # before the next chunk's
    return losses, grad_hidden, grad_weight


def _scaled(gradient: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """gradient x factor (a scalar), multiplied in float32 and rounded once, in `dtype`.

    bf16 x scalar would round the factor first: one relative error of up to 2^-9 in every entry.
    """
    if gradient.dtype == dtype == factor.dtype:
        return gradient * factor
    out = torch.empty_like(gradient, dtype=dtype)
    for rows, into in zip(gradient.split(SCALED_ROWS), out.split(SCALED_ROWS), strict=True):
        into.copy_(rows.float() * factor)
    return out


def fused_kernel(device: torch.device) -> Callable[..., Any] | None:
    """Liger's cross-entropy, the same chunks in Triton; None off the GPU or where not installed.

    Its forward pass gives losses and gradients at once. Its autograd function does not: with
    reduction "none" that computes the whole forward pass again in the backward one, and with "sum"
    there are no losses by position.
    """
    if device.type != "cuda":
        return None
    # In `try`: the loader of `transformers` demands every other import it finds in exported code.
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward
    except ImportError:
        return None
    return fused_linear_cross_entropy_forward


class LanguageHead(nn.Module):
    """The output projection, tied to the token embedding, without bias."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.weight = embedding.weight

    def forward(
        self, hidden: torch.Tensor, target_ids: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits, or with targets the loss: one module call either way, as ZeRO-3 needs.

        Args:
            hidden: (..., D); with targets (N, D), the scored positions alone.
            target_ids: int64 (N,), or None for logits (..., V).

        Returns:
            Logits (..., V); or the sum of the losses (a scalar with gradient) and each loss (N,),
            float32 nats without gradient.
        """
        if target_ids is None:
            return F.linear(hidden, self.weight)
        return _ChunkedCrossEntropy.apply(hidden, self.weight, target_ids)

"""Summed cross-entropy over scored positions, without ever holding all logits.

Letters: N scored positions, D model_dim, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

CHUNK_LOGITS = 2**25  # logits that exist at one time: 128 MiB in fp32, whatever V and N are
CPU_CHUNK_ROWS = 512  # a small vocabulary's chunk then stays in the processor's cache


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes both gradients while the chunk's logits are there, so nothing is computed twice."""

    @staticmethod
    def forward(ctx, hidden, weight, target_ids):  # type: ignore[no-untyped-def]
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        if needs_grad:
            grad_hidden = torch.empty_like(hidden)
            # fp32: many chunks add up here, and bf16 would lose the small ones.
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
            if needs_grad:
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
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad_sum, _):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_sum.to(grad_hidden.dtype),
            grad_weight * grad_sum.to(grad_weight.dtype),
            None,
        )


def fused_kernel(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """Liger's cross-entropy, the same chunks in Triton; None off the GPU or where not installed."""
    if device.type != "cuda":
        return None
    # In `try`: the loader of `transformers` demands every other import it finds in exported code.
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return None
    return liger_fused_linear_cross_entropy


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
        fused = fused_kernel(hidden.device)
        if fused is None:
            return _ChunkedCrossEntropy.apply(hidden, self.weight, target_ids)
        losses = fused(
            hidden, self.weight, target_ids, reduction="none", accum_dtype=torch.float32
        )  # (N,)
        return losses.sum(), losses.detach()

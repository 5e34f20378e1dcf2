"""Summed cross-entropy over scored positions, without ever holding all logits.

Letters: N scored positions, D model_dim, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 1024  # scored positions whose logits exist at one time


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
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part] @ weight.T).float()  # (chunk, V)
            log_probs = F.log_softmax(logits, -1)
            losses[part] = F.nll_loss(log_probs, target_ids[part], reduction="none")
            if needs_grad:
                grad_logits = log_probs.exp_()
                rows = torch.arange(len(grad_logits), device=hidden.device)
                grad_logits[rows, target_ids[part]] -= 1.0
                grad_logits = grad_logits.to(hidden.dtype)
                grad_hidden[part] = grad_logits @ weight
                grad_weight += grad_logits.T @ hidden[part]
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

"""Attention of packed rows: sdpa beside plain products, GPU kernels beside sdpa.

Letters: B rows, T positions, H heads, K head_dim.
"""

import importlib.util
from collections.abc import Callable

import torch

from mllm.doctor.check import Check, failed, measured, not_run
from mllm.model.attention import Documents, attention

LENGTHS = ((1, 2, 61, 17, 100, 40), (256,), (90, 1, 33, 5, 64))  # the rest of a row is padding
SEQ_LEN, HEADS, HEAD_DIM = 256, 4, 64
FP32_LIMIT = 2e-5
BF16_LIMIT = 2e-2  # two roundings of 2^-8 and a sum in another order

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def check_attention(device: torch.device) -> list[Check]:
    """Forward and backward of every backend, on random rows of documents of many lengths."""
    document_ids = torch.full((len(LENGTHS), SEQ_LEN), -1)
    for row, lengths in enumerate(LENGTHS):
        ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        document_ids[row, : len(ids)] = ids
    documents = Documents(document_ids.to(device))
    same = document_ids[:, :, None] == document_ids[:, None]
    mask = same.tril()[:, None].to(device)  # bool (B, 1, T, T)

    def with_backend(backend: str) -> Attend:
        return lambda q, k, v: attention(q, k, v, documents=documents, backend=backend)

    def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bthk,bshk->bhts", query, key) * HEAD_DIM**-0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return torch.einsum("bhts,bshk->bthk", weights, value)

    sdpa = _run(with_backend("sdpa"), torch.float32, device)
    reference = _run(dense, torch.float64, device)
    checks = [
        measured(
            "attention: sdpa = plain products in float64, forward and backward, fp32",
            _error(sdpa, reference),
            FP32_LIMIT,
            "of the largest",
        )
    ]
    for backend in ("flash_attn", "xformers"):
        name = f"attention: {backend} = sdpa, forward and backward, bf16"
        if device.type != "cuda":
            checks.append(not_run(name, "no CUDA GPU"))
        elif importlib.util.find_spec(backend) is None:
            checks.append(not_run(name, "not installed; pip install 'mllm[gpu]'"))
        else:
            checks.append(_beside_sdpa(name, with_backend(backend), with_backend("sdpa"), device))
    return checks


def _beside_sdpa(name: str, attend: Attend, sdpa: Attend, device: torch.device) -> Check:
    try:
        found = _run(attend, torch.bfloat16, device)
    except Exception as error:  # one built for another GPU or torch says so as it likes
        return failed(name, f"{type(error).__name__}: {str(error).strip()[:200]}")
    expected = _run(sdpa, torch.bfloat16, device)
    return measured(name, _error(found, expected), BF16_LIMIT, "of the largest")


def _run(attend: Attend, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Output (B, T, H, K) and the gradients of query, key and value, in float64."""
    draws = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), SEQ_LEN, HEADS, HEAD_DIM)
    query, key, value, weight = (
        # Rounded to bf16 first: every precision starts from the same numbers.
        torch.randn(shape, generator=draws).bfloat16().to(device, dtype)
        for _ in range(4)
    )
    inputs = [x.requires_grad_() for x in (query, key, value)]
    out = attend(*inputs)
    return [x.detach().double() for x in (out, *torch.autograd.grad((out * weight).sum(), inputs))]


def _error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest difference in any of the tensors, over the largest value in it."""
    pairs = zip(found, expected, strict=True)
    # As one tensor, so that a value that is no number stays one.
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max())

"""The chunked loss is plain cross-entropy, in memory that does not grow with V x N."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mllm.model import loss
from mllm.model.loss import LanguageHead, fused_kernel

VOCAB, DIM, CHUNK = 53, 12, 8  # CHUNK rows make CHUNK_LOGITS below


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", CHUNK * VOCAB + 1)


@pytest.mark.parametrize("num_scored", [1, 5, CHUNK, 2 * CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_loss_equals_plain_cross_entropy(num_scored: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(VOCAB, DIM, dtype=dtype)
    weight = embedding.weight
    hidden = torch.randn(num_scored, DIM, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, VOCAB, (num_scored,))
    loss_sum, losses = LanguageHead(embedding)(hidden, targets)
    (loss_sum * 0.5).backward()
    assert loss_sum.dtype == losses.dtype == torch.float32
    mine = hidden.grad.float(), weight.grad.float()
    hidden.grad = weight.grad = None
    # Logits in `dtype`, then float32: what a plain head under the same precision computes.
    plain = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    (plain.sum() * 0.5).backward()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # bf16 keeps 8 bits
    assert torch.allclose(losses, plain, rtol=1e-5)
    assert torch.allclose(loss_sum, plain.sum(), rtol=1e-5)
    for a, b in zip(mine, (hidden.grad.float(), weight.grad.float()), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


class PeakBytes(TorchDispatchMode):
    """Most bytes that the tensors made under it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, num_bytes: int) -> None:
        self.known.discard(key)
        self.live -= num_bytes


def peak_bytes(vocab_size: int, num_scored: int, *, is_plain: bool) -> int:
    embedding = torch.nn.Embedding(vocab_size, 4)
    hidden = torch.randn(num_scored, 4, requires_grad=True)
    targets = torch.randint(0, vocab_size, (num_scored,))
    with PeakBytes() as counter:
        if is_plain:
            total = F.cross_entropy(hidden @ embedding.weight.T, targets, reduction="sum")
        else:
            total, _ = LanguageHead(embedding)(hidden, targets)
        total.backward()
    return counter.peak


def test_peak_memory_does_not_grow_with_vocabulary_times_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 40_000)
    for vocab_size, num_scored in ((1000, 4000), (4000, 4000)):
        # The chunk's logits a few times, and gradients of hidden and weight: no V x N.
        bound = 4 * (4 * 40_000 + 5 * 4 * (vocab_size + num_scored) + 8 * num_scored)
        assert peak_bytes(vocab_size, num_scored, is_plain=False) < bound
        plain = peak_bytes(vocab_size, num_scored, is_plain=True)
        assert plain > 4 * vocab_size * num_scored


def recorded_liger(  # type: ignore[no-untyped-def]
    input,
    weight,
    target,
    bias=None,
    ce_weight=None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype=None,
):
    """liger_fused_linear_cross_entropy's signature in liger-kernel 0.6.2 (0.8.5 adds to its end);
    its kernel needs a GPU and is not run here.
    """
    assert reduction == "none" and bias is None and accum_dtype == torch.float32
    return F.cross_entropy(input @ weight.T, target, reduction=reduction)


def test_ligers_kernel_is_called_as_it_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_kernel(torch.device("cpu")) is None
    embedding = torch.nn.Embedding(VOCAB, DIM)
    hidden, targets = torch.randn(9, DIM, requires_grad=True), torch.randint(0, VOCAB, (9,))
    expected = LanguageHead(embedding)(hidden, targets)
    monkeypatch.setattr(loss, "fused_kernel", lambda device: recorded_liger)
    total, losses = LanguageHead(embedding)(hidden, targets)
    assert torch.allclose(total, expected[0]) and torch.allclose(losses, expected[1])
    assert total.requires_grad and not losses.requires_grad

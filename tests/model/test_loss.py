"""The chunked loss is plain cross-entropy, in memory that does not grow with V x N."""

import inspect
import sys
import types
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


@pytest.mark.parametrize("scale", [1 / 3, 1 / 641, 65536 / 3])
def test_a_bf16_gradient_is_scaled_by_the_exact_factor(scale: float) -> None:
    """Rounded to bf16 first, 1/3 alone would make the whole gradient 0.2 % too large."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(VOCAB, 64, dtype=torch.bfloat16)
    values, targets = torch.randn(400, 64).bfloat16(), torch.randint(0, VOCAB, (400,))

    def gradients(factor: float) -> list[torch.Tensor]:
        hidden = values.clone().requires_grad_()
        embedding.weight.grad = None
        loss_sum, _ = LanguageHead(embedding)(hidden, targets)
        (loss_sum * factor).backward()
        assert hidden.grad is not None and embedding.weight.grad is not None
        return [hidden.grad.double(), embedding.weight.grad.double()]

    rounded = float(torch.tensor(scale).bfloat16()) / scale
    assert abs(rounded - 1) > 1.4e-3  # the planted fault would show
    for whole, scaled in zip(gradients(1.0), gradients(scale), strict=True):
        # Entries are rounded on their own, both ways; together they keep the factor.
        ratio = (whole * scaled).sum() / (whole * whole).sum() / scale
        assert abs(ratio - 1) < 4e-4


# ------------------------------------------------------------------------------------------ Liger
def fused_linear_cross_entropy_forward(  # type: ignore[no-untyped-def]
    _input,
    weight,
    target,
    ce_weight=None,
    bias=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
    use_token_scaling=False,
    return_token_accuracy=False,
    return_predicted_tokens=False,
    ce_impl=None,
    ce_mode=None,
    token_grad_output=None,
    compute_gradients=None,
    weight_requires_grad=None,
    chunk_mem_const: int = 1,
):
    """As in liger_kernel/ops/fused_linear_cross_entropy.py of the wheel of liger-kernel 0.8.5, and
    what it gives back, in plain torch: with reduction "none" the losses of positions, and with
    `compute_gradients` the gradients of their sum. Its Triton kernel needs a GPU; run on a CPU by
    Triton 3.9.0's interpreter it agreed with our own chunks to 2e-6 on 2026-11-25.
    """
    assert reduction == "none" and accum_dtype == torch.float32 and bias is ce_weight is None
    assert compute_gradients is weight_requires_grad and not torch.is_grad_enabled()
    probs = (_input @ weight.T).float().softmax(-1)
    losses = -probs.gather(1, target[:, None])[:, 0].log()
    grad_logits = (probs - F.one_hot(target, len(weight))).to(_input.dtype)
    grad_weight = grad_logits.T @ _input if compute_gradients else None
    return losses, None, None, None, grad_logits @ weight, grad_weight, None


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """liger_kernel installed, and a device that it runs on, so that it is found by its import."""
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    name = "liger_kernel.ops.fused_linear_cross_entropy"
    module = types.ModuleType(name)
    vars(module).update(fused_linear_cross_entropy_forward=fused_linear_cross_entropy_forward)
    monkeypatch.setitem(sys.modules, name, module)
    find = loss.fused_kernel
    monkeypatch.setattr(loss, "fused_kernel", lambda device: find(torch.device("cuda")))


@pytest.mark.usefixtures("liger")
def test_ligers_kernel_is_called_as_it_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loss.fused_kernel(torch.device("cuda")) is fused_linear_cross_entropy_forward
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(VOCAB, DIM)
    values, targets = torch.randn(9, DIM), torch.randint(0, VOCAB, (9,))

    def results() -> list[torch.Tensor]:
        hidden = values.clone().requires_grad_()
        total, losses = LanguageHead(embedding)(hidden, targets)
        assert total.requires_grad and not losses.requires_grad
        (total * 0.3).backward()
        with torch.no_grad():
            evaluated, _ = LanguageHead(embedding)(values, targets)
        grads = [hidden.grad, embedding.weight.grad]
        embedding.weight.grad = None
        return [total.detach(), evaluated, losses, *(g for g in grads if g is not None)]

    fused = results()
    monkeypatch.setattr(loss, "fused_kernel", lambda device: None)
    for a, b in zip(fused, results(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_without_liger_or_a_gpu_the_chunks_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "liger_kernel.ops.fused_linear_cross_entropy"
    monkeypatch.setitem(sys.modules, name, None)
    assert fused_kernel(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert fused_kernel(torch.device("cpu")) is None


@pytest.mark.gpu
def test_the_recorded_signature_is_that_of_the_installed_liger() -> None:
    from liger_kernel.ops import fused_linear_cross_entropy as installed

    theirs = inspect.signature(installed.fused_linear_cross_entropy_forward)
    assert theirs == inspect.signature(fused_linear_cross_entropy_forward)

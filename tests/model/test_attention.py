"""Packed attention of every backend against a dense mask; GPU libraries by their signatures.

flash-attn and xformers compute on GPUs only. What stands in for them here has their signatures,
copied below, and a dense mask inside. xformers' Python is installed for the tests and compared with
the copy; flash-attn does not even install without CUDA's compiler, so what its copy was compared
with is written beside it, and a test for GPU machines compares the installed one.
"""

import ast
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mllm.model import attention as attention_module
from mllm.model.attention import Documents, attention
from mllm.model.decoder import FeedForward
from tests.model.test_decoder import packed_row, tiny

LENGTHS = [7, 30, 1, 17]


def documents_of(*rows: list[int], seq_len: int = 64) -> Documents:
    return Documents(torch.cat([packed_row(lengths, seq_len)[0] for lengths in rows]))


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int]
) -> torch.Tensor:
    """Softmax attention written out over a dense mask of documents; (N, H, K) each."""
    place = torch.arange(len(query))
    document = torch.bucketize(place, torch.tensor(bounds[1:]), right=True)
    keep = (document == document[:, None]) & (place <= place[:, None])
    scores = torch.einsum("thk,shk->hts", query, key) * query.shape[-1] ** -0.5
    return torch.einsum("hts,shk->thk", scores.masked_fill(~keep, -torch.inf).softmax(-1), value)


# ------------------------------------------------------------------------------------ recorded
# flash_attn_varlen_func: equal, argument by argument, in flash_attn/flash_attn_interface.py of
# Dao-AILab/flash-attention at 005300258a22e5fc6be621063c3d5704e82b89d9 (2.6.3), v2.7.1, v2.7.4 and
# v2.8.3, read on 2026-11-25. memory_efficient_attention, BlockDiagonalCausalMask: xformers 0.0.35.
ARRIVED: list[float] = []  # the dropout of each call


def flash_attn_varlen_func(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """As documented: (total, heads, head_dim); int32 (N + 1,) cumulative lengths; int maxima."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert isinstance(max_seqlen_q, int) and isinstance(max_seqlen_k, int)
    assert max_seqlen_q == int(cu_seqlens_q.diff().max()) and q.stride(-1) == 1
    assert causal and softmax_scale is None and cu_seqlens_q[-1] == len(q)
    ARRIVED.append(dropout_p)
    return dense(q, k, v, cu_seqlens_q.tolist())


def memory_efficient_attention(  # type: ignore[no-untyped-def]
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    """As documented: (1, total, heads, head_dim) under a block-diagonal mask."""
    assert query.shape[0] == 1 and scale is None
    ARRIVED.append(p)
    return dense(query[0], key[0], value[0], attn_bias)[None]


class BlockDiagonalCausalMask:
    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):  # type: ignore[no-untyped-def]
        assert all(isinstance(n, int) for n in q_seqlen)
        return [0, *torch.tensor(q_seqlen).cumsum(0).tolist()]


RECORDED: dict[str, dict[str, object]] = {
    "flash_attn": {"flash_attn_varlen_func": flash_attn_varlen_func},
    "xformers.ops": {"memory_efficient_attention": memory_efficient_attention},
    "xformers.ops.fmha.attn_bias": {"BlockDiagonalCausalMask": BlockDiagonalCausalMask},
}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RECORDED:
        parts = name.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(
                sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i]))
            )
    for name, members in RECORDED.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("backend", ["sdpa", "flash_attn", "xformers"])
@pytest.mark.usefixtures("recorded")
def test_backends_agree_with_a_dense_mask_forward_and_backward(backend: str) -> None:
    torch.manual_seed(0)
    documents = documents_of(LENGTHS, [64], [10, 50])
    inputs = [torch.randn(3, 64, 2, 8, requires_grad=True) for _ in range(3)]
    weights = torch.randn(3, 64, 2, 8)
    out = attention(*inputs, documents=documents, backend=backend)
    grads = torch.autograd.grad((out * weights).sum(), inputs)
    flat = [x.flatten(0, 1) for x in inputs]
    expected = dense(*flat, documents.cu_seqlens.tolist()).view_as(out)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["flash_attn", "xformers"])
@pytest.mark.usefixtures("recorded")
def test_dropout_arrives_at_the_kernel(backend: str) -> None:
    ARRIVED.clear()
    x = torch.randn(1, 64, 2, 8)
    for dropout in (0.25, 0.0):
        attention(x, x, x, documents=documents_of(LENGTHS), dropout=dropout, backend=backend)
    assert ARRIVED == [0.25, 0.0]


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.usefixtures("recorded")
def test_flash_attn_follows_torchs_deterministic_switch(
    is_deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def note(*args: torch.Tensor, deterministic: bool, **settings: object) -> torch.Tensor:
        given.append(deterministic)
        return flash_attn_varlen_func(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_varlen_func", note)
    x = torch.randn(1, 64, 2, 8)
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        attention(x, x, x, documents=documents_of(LENGTHS), backend="flash_attn")
    finally:
        torch.use_deterministic_algorithms(False)
    assert given == [is_deterministic]


def parameters(function: Callable) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def compare_with_installed(name: str) -> None:
    module = importlib.import_module(name)
    for member, ours in RECORDED[name].items():
        theirs = getattr(module, member)
        if isinstance(ours, type):
            ours, theirs = ours.from_seqlens, theirs.from_seqlens  # type: ignore[attr-defined]
        assert parameters(theirs) == parameters(ours)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["xformers.ops", "xformers.ops.fmha.attn_bias"])
def test_recorded_signatures_are_those_of_xformers(name: str) -> None:
    compare_with_installed(name)


@pytest.mark.gpu
def test_the_recorded_signature_is_that_of_the_installed_flash_attn() -> None:
    compare_with_installed("flash_attn")


@pytest.mark.parametrize(
    "rows",
    [
        [LENGTHS],  # and 9 positions of padding
        [LENGTHS, [64], [10, 50]],
        [[64]],
        [[64], [64]],
        [[], [3]],  # a row that is all padding
        [[1] * 64],
    ],
)
def test_xformers_own_mask_is_the_dense_one_of_the_documents(rows: list[list[int]]) -> None:
    document_ids = torch.cat([packed_row(lengths, 64)[0] for lengths in rows])
    places = [(row, int(i)) for row, ids in enumerate(document_ids) for i in ids]
    total = len(places)
    expected = torch.full((total, total), -torch.inf)
    for query in range(total):
        for key in range(query + 1):
            if places[query] == places[key]:
                expected[query, key] = 0.0
    mask = Documents(document_ids).xformers_mask
    assert type(mask).__module__ == "xformers.ops.fmha.attn_bias"
    assert torch.equal(mask.materialize((total, total)), expected)


def imports_when_loaded(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported as soon as the file is, in `if` and `try` as well."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_when_loaded(node)


def test_nothing_imports_a_gpu_library_until_it_is_used() -> None:
    """xformers takes seconds to import and warns on a machine without CUDA."""
    optional = {"xformers", "flash_attn", "liger_kernel"}
    files = list(Path(attention_module.__file__).parent.parent.rglob("*.py"))
    assert len(files) > 50
    for path in files:
        for name in imports_when_loaded(ast.parse(path.read_text())):
            assert name.partition(".")[0] not in optional, path
    planted = "try:\n    import xformers.ops\nexcept ImportError:\n    pass"
    assert list(imports_when_loaded(ast.parse(planted))) == ["xformers.ops"]


@pytest.mark.parametrize("backend", ["flash_attn", "xformers"])
def test_an_absent_library_is_named_with_the_mend(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in RECORDED:
        monkeypatch.setitem(sys.modules, name, None)
    x = torch.randn(1, 64, 2, 8)
    with pytest.raises(ImportError, match=rf"{backend}: pip install 'mllm\[gpu\]'"):
        attention(x, x, x, documents=documents_of(LENGTHS), backend=backend)


# --------------------------------------------------------------------------------- what it costs
class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operator takes or gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


def test_a_packed_row_of_many_documents_makes_no_mask_of_the_row() -> None:
    seq_len = 512
    lengths = [5, 11, 8, 23, 1] * 10
    document_ids, _ = packed_row(lengths, seq_len)

    def largest(is_dense: bool) -> int:
        inputs = [torch.randn(1, seq_len, 2, 8, requires_grad=True) for _ in range(3)]
        with LargestTensor() as counter:
            if is_dense:  # the planted fault
                is_same = document_ids[:, :, None] == document_ids[:, None]
                mask = is_same.tril()[:, None]
                out = attention(*inputs, mask=mask)
            else:
                out = attention(*inputs, documents=Documents(document_ids))
            out.sum().backward()
        return counter.elements

    # Three times what goes in covers a rectangle's padding and its scores by head.
    assert largest(is_dense=False) <= 3 * (seq_len * 2 * 8) < seq_len * seq_len
    assert largest(is_dense=True) >= seq_len * seq_len


@pytest.mark.usefixtures("recorded")
def test_a_compiled_block_is_not_compiled_again_for_other_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compilations() -> int:
        torch.compiler.reset()
        counter = CompileCounter()

        @torch.compile(backend=counter)
        def block(x: torch.Tensor, documents: Documents) -> torch.Tensor:
            return attention(x + 1, x, x, documents=documents, backend="flash_attn") * 2

        for lengths in ([20, 25], [7, 30, 1, 17], [64]):
            block(torch.randn(1, 64, 2, 8), documents_of(lengths))
        return counter.frame_count

    assert compilations() <= 2  # before attention and after
    packed = attention_module._packed.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(attention_module, "_packed", packed)  # the planted fault
    assert compilations() > 2


# ---------------------------------------------------------------------------- precision, dropout
def test_softmax_of_bf16_is_computed_in_fp32() -> None:
    """The result lies within a few bf16 roundings of the output of the fp32 one."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 64, 2, 16).bfloat16() for _ in range(3)]
    exact = attention(*(x.float() for x in inputs), is_causal=True)
    documents = documents_of([64], [64])
    for out in (attention(*inputs, is_causal=True), attention(*inputs, documents=documents)):
        assert ((out.float() - exact).abs() <= 2**-7 * exact.abs() + 2**-8).all()


def test_gelu_is_the_exact_one_in_fp32_cast_afterwards() -> None:
    x = torch.linspace(-6, 6, 4001).bfloat16()
    exact = 0.5 * x.double() * (1 + torch.erf(x.double() / 2**0.5))
    assert torch.equal(F.gelu(x), F.gelu(x.float()).bfloat16())
    assert (F.gelu(x.float()) - exact).abs().max() < 1e-6
    ffn = FeedForward(tiny()).bfloat16()
    hidden = torch.randn(5, 48).bfloat16()
    middle = F.gelu(ffn.fc1(hidden).float()).bfloat16()
    assert torch.equal(ffn(hidden), ffn.fc2(ffn.ffn_layernorm(middle)))


def test_attention_dropout_drops_probabilities_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 64, 2, 8)
    value = torch.ones_like(x)
    documents = documents_of([64])
    out = attention(x, x, value, documents=documents, dropout=0.5)
    assert not torch.equal(out, attention(x, x, value, documents=documents, dropout=0.5))
    assert out[0, 0].eq(0).any() or out[0, 0].eq(2).all()  # one probability: all or nothing
    assert abs(out[0, 16:].mean().item() - 1) < 0.1

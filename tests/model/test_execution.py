"""Checkpointed, compiled and plain steps are the same step."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap

from mllm.config import parse_config
from mllm.engine_config import deepspeed_config
from mllm.model import attention
from mllm.model.attention import Documents
from mllm.model.execution import KEPT, Checkpointing
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from tests.model.test_decoder import packed_row, tiny
from tests.model.test_multimodal import assert_gradients_reach_what_is_trained


def step(
    model: MultimodalModel, checkpointing: Checkpointing, *, compile: bool = False
) -> tuple[list[torch.Tensor], int]:
    """Loss and gradients of two packed batches, and the bytes kept for the backward passes."""
    model.train()
    model.vision.freeze(train_last_blocks=1)
    model.set_execution(
        attention_backend="sdpa", activation_checkpointing=checkpointing, compile=compile
    )
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    results = []
    for seed, lengths in enumerate(([20, 25, 15], [7, 30, 1, 17])):
        torch.manual_seed(seed)
        document_ids, positions = packed_row(lengths, 64)
        slot_mask = torch.zeros(1, 64, dtype=torch.bool)
        slot_mask[0, 2:5] = True
        token_ids, pixels = torch.randint(8, 97, (1, 64)), torch.randn(1, 3, 16, 16)
        torch.manual_seed(9)  # of attention dropout
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = model(
                token_ids,
                slot_mask,
                pixels,
                positions,
                documents=Documents(document_ids),
                row_seeds=torch.tensor([seed]),
            )
        loss, _ = model.head(hidden[0], token_ids[0].roll(-1))
        loss.backward()
        results.append(loss.detach())
    assert_gradients_reach_what_is_trained(model)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return results + grads, sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointed_steps_are_equal_to_the_bit_and_keep_less(dropout: float) -> None:
    """Dropout has the same masks when a block is computed again."""
    config = tiny(dropout=dropout, attention_dropout=dropout)
    plain, plain_bytes = step(build(config, seed=1), "none")
    bytes_kept = []
    for mode in ("selective", "full"):
        results, kept = step(build(config, seed=1), mode)
        assert all(torch.equal(a, b) for a, b in zip(results, plain, strict=True)), mode
        bytes_kept.append(kept)
    # The hooks see what autograd keeps; `selective` keeps products on its own, out of their sight.
    assert bytes_kept[1] < 0.5 * plain_bytes and bytes_kept[0] < plain_bytes
    other, _ = step(build(tiny(dropout=0.5), seed=1), "none")
    assert not torch.equal(other[0], plain[0])  # dropout does act here


# ---------------------------------------------------------------- attention of other libraries
CALLS: list[str] = []


def gpu_library(name: str) -> Callable[..., torch.Tensor]:
    """A packed backend whose kernel is an operator of that name, as flash-attn's and xformers' are:
    called in an autograd function, which keeps its outputs for the backward pass.
    """

    @torch.library.custom_op(name, mutates_args=())
    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        CALLS.append(name)
        return query * key.tanh() + value

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
            out = kernel(*inputs)
            ctx.save_for_backward(*inputs, out)
            return out

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            query, key, value, out = ctx.saved_tensors
            assert torch.equal(out, query * key.tanh() + value)
            return grad * key.tanh(), grad * query * (1 - key.tanh() ** 2), grad

    return lambda query, key, value, documents, dropout: Attention.apply(query, key, value)


LIBRARIES = {  # operators whose library is not there; xformers registers its own on GPUs only
    "flash_attn::_flash_attn_varlen_forward": 1,
    "xformers_flash::flash_fwd": 1,
    "xformers_flash3::flash_fwd": 1,
    "mllm_tests::attention_that_nobody_knows": 2,  # the planted fault: computed twice
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_selective_computes_attention_of_every_backend_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_packed_flash_attn", gpu_library(name))
    model = build(tiny(), seed=1).train()
    document_ids, positions = packed_row([20, 44], 64)
    embeddings = torch.randn(1, 64, 48)

    def gradients(mode: Checkpointing) -> tuple[list[torch.Tensor], float]:
        CALLS.clear()
        model.zero_grad()
        model.set_execution(
            attention_backend="flash_attn", activation_checkpointing=mode, compile=False
        )
        hidden = model.decoder(embeddings, positions, documents=Documents(document_ids))
        hidden.square().sum().backward()
        grads = [p.grad for p in model.decoder.parameters() if p.grad is not None]
        return grads, len(CALLS) / model.config.num_layers

    plain, calls = gradients("none")
    assert calls == 1
    kept, calls = gradients("selective")
    assert calls == LIBRARIES[name]
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    assert gradients("full")[1] == 2


def test_names_of_kept_operators_are_those_of_torch_and_xformers() -> None:
    """flash-attn 2.7.1, 2.7.4 and 2.8.3 register `flash_attn::_flash_attn_varlen_forward`, by
    their flash_attn/flash_attn_interface.py; 2.6.3 named it differently.
    """
    spec = importlib.util.find_spec("xformers")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "ops" / "fmha"
    sources = {name: (folder / f"{name}.py").read_text() for name in ("flash", "flash3", "cutlass")}
    for name in KEPT:
        library, _, operator = name.partition("::")
        if library == "aten":
            assert torch._C._jit_get_schemas_for_operator(name), name
        elif library.startswith("xformers"):
            assert f'"{name}"' in sources[library.removeprefix("xformers_")]
            assert f'get_operator("{library}", "{operator}")' in "".join(sources.values())
    assert 'get_operator("aten", "_efficient_attention_forward")' in sources["cutlass"]


@pytest.mark.slow  # a C++ compiler's minute
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_steps_are_equal_to_plain_ones(checkpointing: Checkpointing) -> None:
    config = tiny(dropout=0.2)
    plain, _ = step(build(config, seed=1), "none")
    compiled, _ = step(build(config, seed=1), checkpointing, compile=True)
    for a, b in zip(compiled, plain, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-6


def test_selective_refuses_a_linear_that_changes_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DeepSpeed replaces torch's under ZeRO-3; with it the gradients of a step were wrong."""
    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    with pytest.raises(RuntimeError, match="memory_efficient_linear"):
        step(build(tiny(), seed=1), "selective")
    settings = {"train": {"activation_checkpointing": "selective"}, "zero": {"stage": 3}}
    config = parse_config({"run_dir": "r", "tokenizer": "t", **settings}, "a test")
    zero = deepspeed_config(config, "bf16", world_size=1)["zero_optimization"]
    assert zero["memory_efficient_linear"] is False

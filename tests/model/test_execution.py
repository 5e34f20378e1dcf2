"""Checkpointed, compiled and plain steps are the same step."""

import pytest
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap

from mllm.config import parse_config
from mllm.engine import deepspeed_config
from mllm.model.attention import Documents
from mllm.model.execution import Checkpointing
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from tests.model.test_decoder import packed_row, tiny


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
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
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

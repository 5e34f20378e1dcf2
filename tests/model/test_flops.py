"""Our count of operations against torch's own, which watches a step."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mllm.model.config import ModelConfig
from mllm.model.flops import forward_flops, step_flops
from mllm.model.init import build
from tests.model.test_decoder import VISION, tiny

CONFIGS = {
    "attention": tiny(),
    "perceiver": tiny(resampler="perceiver", resampler_layers=2),
    "no CLS": tiny(vision=dataclasses.replace(VISION, keep_cls=False)),
}
LENGTH, NUM_IMAGES, NUM_SCORED = 20, 2, 13


def counted(config: ModelConfig, *, train_last_blocks: int | None) -> dict[str, int]:
    """By part, of two documents of LENGTH with a picture each; forward alone, or with backward."""
    model = build(config, seed=0)
    slot_mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    slot_mask[:, 2 : 2 + config.num_latents] = True
    token_ids = torch.randint(8, 97, (2, LENGTH))
    if train_last_blocks is not None:
        model.vision.freeze(train_last_blocks)
    # torch counts addmm but not its in-place form, which sums up the head's gradient; and of SDPA
    # not the CPU kernel but the plain form.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter, sdpa_kernel(SDPBackend.MATH):
        hidden = model(
            token_ids,
            slot_mask,
            torch.randn(NUM_IMAGES, 3, 16, 16),
            torch.arange(LENGTH).expand(2, -1),
            kept=torch.arange(NUM_SCORED),
        )
        if train_last_blocks is None:
            model.head(hidden)
        else:
            model.head(hidden, token_ids.flatten()[:NUM_SCORED])[0].backward()
    whole = counter.get_flop_counts()
    parts = {
        name: sum(whole.get(f"MultimodalModel.{name}", {}).values())
        for name in ("vision", "resampler", "decoder")
    }
    return parts | {"head": sum(whole["Global"].values()) - sum(parts.values())}


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_flops_are_those_that_torch_counts(name: str) -> None:
    config = CONFIGS[name]
    ours = forward_flops(config, [LENGTH, LENGTH], NUM_IMAGES, NUM_SCORED)
    theirs = counted(config, train_last_blocks=None)
    assert ours == theirs


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("train_last_blocks", [0, 1, 2])
def test_step_flops_are_those_that_torch_counts_in_each_part(
    name: str, train_last_blocks: int
) -> None:
    config = CONFIGS[name]
    ours = step_flops(config, [LENGTH, LENGTH], NUM_IMAGES, NUM_SCORED, train_last_blocks)
    assert ours == counted(config, train_last_blocks=train_last_blocks)


def test_the_papers_step_is_about_six_flops_a_parameter_and_position() -> None:
    config = ModelConfig()
    flops = step_flops(config, [2048], 0, 2048, train_last_blocks=1)
    parameters = 1_340_180_480
    ratio = sum(flops.values()) / (6 * parameters * 2048)
    assert 1.0 < ratio < 1.2  # the rest is attention

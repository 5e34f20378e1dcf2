"""The seam and the frozen parts."""

import pytest
import torch

from mllm.model.config import ModelConfig
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from tests.model.test_decoder import tiny


def inputs(num_images: int) -> dict:
    slot_mask = torch.zeros(2, 16, dtype=torch.bool)
    for i in range(num_images):
        slot_mask[i % 2, 2 + 4 * (i // 2) : 5 + 4 * (i // 2)] = True
    return {
        "token_ids": torch.randint(8, 97, (2, 16)),
        "slot_mask": slot_mask,
        "pixels": torch.randn(max(1, num_images), 3, 16, 16),
        "positions": torch.arange(16).expand(2, -1),
        "num_images": num_images,
    }


def assert_gradients_reach_what_is_trained(model: MultimodalModel) -> None:
    """A gradient that is not zero for every trainable parameter, none for a frozen one.

    But for k_proj.bias: one vector added to every key moves all scores of a query alike, and
    softmax does not see that. Its gradient is zero but for rounding. Under xPos, which turns each
    key by its own angle, that no longer holds.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith("k_proj.bias") or name.startswith("decoder."):
            assert parameter.grad.abs().max() > 1e-6, name


def test_slots_and_pictures_that_differ_in_number_are_refused_with_both_counts() -> None:
    model = build(tiny(), seed=0)
    wrong = inputs(2) | {"pixels": torch.randn(3, 3, 16, 16)}
    with pytest.raises(ValueError, match=r"6 image slots .* 3 pictures"):
        model(**wrong)


def test_pictures_go_into_their_own_slots_row_by_row() -> None:
    model = build(tiny(), seed=0).eval()
    given = inputs(4)
    with torch.no_grad():
        whole = model(**given)
        first_row = model(
            **{name: given[name][:1] for name in ("token_ids", "slot_mask", "positions")},
            pixels=given["pixels"][:2],
        )
    assert (whole[:1] - first_row).abs().max() < 1e-5


def test_a_dummy_picture_changes_nothing_but_runs_the_vision_encoder() -> None:
    model = build(tiny(), seed=0)
    given = inputs(0)
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append(1))
    out = model(**given)
    other = model(**(given | {"pixels": torch.randn(1, 3, 16, 16)}))
    assert torch.equal(out, other) and len(calls) == 2
    out.sum().backward()
    grads = [p.grad for p in (*model.vision.parameters(), *model.resampler.parameters())]
    used = [grad for grad in grads if grad is not None]
    # Zero, but there: ZeRO waits for each. CLIP's own unused parts have none in any batch.
    assert len(used) > 40 and not any(grad.any() for grad in used)
    assert all(p.grad is not None for p in model.resampler.parameters())


@pytest.mark.parametrize("resampler", ["attention", "perceiver"])
def test_gradient_reaches_every_trainable_parameter_and_no_frozen_one(resampler: str) -> None:
    torch.manual_seed(0)
    model = build(tiny(resampler=resampler, resampler_layers=2), seed=0)
    model.vision.freeze(train_last_blocks=1)
    hidden = model(**inputs(3))
    loss_sum, _ = model.head(hidden.flatten(0, 1), torch.randint(8, 97, (32,)))
    loss_sum.backward()
    assert_gradients_reach_what_is_trained(model)
    blocks = model.vision.vision_model.encoder.layers
    assert not any(p.requires_grad for p in blocks[0].parameters())
    assert all(p.requires_grad for p in blocks[-1].parameters())


def test_contradicting_sizes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        ModelConfig(model_dim=100, num_heads=3)
    with pytest.raises(ValueError, match="seq_len 8 cannot hold"):
        ModelConfig(seq_len=8, num_latents=64)

"""The contrastive objective against `transformers`' CLIP loss, and its positives."""

from pathlib import Path

import pytest
import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

import mllm
from mllm.config import load_config
from mllm.model.config import TextConfig
from mllm.model.contrastive import MAX_SCALE, ContrastiveModel
from mllm.optim import parameter_groups
from mllm.step_memory import build_empty
from tests.model.test_decoder import VISION

PRESETS = Path(mllm.__file__).parent / "configs"
TEXT = TextConfig(width=24, num_layers=2, num_heads=2, mlp_dim=48)
TOWERS = pytest.mark.parametrize("text", [None, TEXT], ids=["bag", "transformer"])


def tiny_contrastive(text: TextConfig | None = None) -> ContrastiveModel:
    torch.manual_seed(0)
    return ContrastiveModel(
        VISION,
        vocab_size=97,
        embed_dim=16,
        initial_temperature=0.07,
        text=text,
        text_len=10,
    )


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.randint(3, 10, (size,))
    token_ids = torch.randint(8, 97, (size, 10))
    token_ids[torch.arange(10) >= lengths[:, None]] = 1
    return torch.randn(size, 3, 16, 16), token_ids, lengths


@TOWERS
def test_with_distinct_captions_the_loss_is_clips(text: TextConfig | None) -> None:
    model = tiny_contrastive(text)
    pixels, token_ids, lengths = batch(7)
    loss_sum, stats = model(
        pixels, token_ids, lengths, torch.arange(7), torch.ones(7, dtype=torch.bool)
    )
    images, texts = model.embed_images(pixels), model.embed_texts(token_ids, lengths)
    expected = image_text_contrastive_loss(model.logit_scale.exp() * texts @ images.T)
    assert torch.allclose(loss_sum / 7, expected, rtol=1e-5)
    assert stats.shape == (2, 7) and torch.allclose(stats[0].sum(), loss_sum.detach())


def test_pairs_of_one_thing_are_each_others_positives() -> None:
    """With every pair naming one thing no assignment is better than another: log of the count."""
    model = tiny_contrastive()
    pixels, token_ids, lengths = batch(4)
    same = torch.zeros(4, dtype=torch.int64)
    pixels[:] = pixels[0]
    token_ids[:], lengths[:] = token_ids[0], lengths[0]
    loss_sum, stats = model(pixels, token_ids, lengths, same, torch.ones(4, dtype=torch.bool))
    assert torch.allclose(loss_sum / 4, torch.tensor(4.0).log())
    assert stats[1].tolist() == [1.0] * 4


@TOWERS
def test_padding_behind_a_caption_changes_nothing(text: TextConfig | None) -> None:
    model = tiny_contrastive(text).eval()
    _, token_ids, lengths = batch(5)
    changed = token_ids.clone()
    changed[torch.arange(10) >= lengths[:, None]] = 50
    with torch.no_grad():
        a, b = model.embed_texts(token_ids, lengths), model.embed_texts(changed, lengths)
    assert (a - b).abs().max() < 1e-6


@TOWERS
def test_unused_pairs_are_as_if_they_were_not_there(text: TextConfig | None) -> None:
    model = tiny_contrastive(text)
    parts = (*batch(7), torch.tensor([0, 1, 2, 2, 1, 3, 4]))
    is_used = torch.tensor([1, 0, 1, 1, 1, 0, 1]).bool()

    def gradients(loss_sum: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        loss_sum.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    loss_sum, stats = model(*parts, is_used)
    alone_sum, alone_stats = model(*(part[is_used] for part in parts), is_used[is_used])
    assert torch.allclose(loss_sum, alone_sum, rtol=1e-5)
    assert not stats[:, ~is_used].any()
    assert torch.allclose(stats[:, is_used], alone_stats, rtol=1e-4)
    for one, two in zip(gradients(loss_sum), gradients(alone_sum), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    loss_sum, stats = model(*parts, torch.zeros(7, dtype=torch.bool))
    assert loss_sum == 0 and not stats.any()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss_sum))


def test_the_transformer_reads_the_order_of_a_caption() -> None:
    _, token_ids, lengths = batch(5)
    swapped = token_ids.clone()
    swapped[:, :2] = token_ids[:, [1, 0]]
    for text, least in ((None, 0.0), (TEXT, 1e-3)):
        model = tiny_contrastive(text).eval()
        with torch.no_grad():
            a, b = model.embed_texts(token_ids, lengths), model.embed_texts(swapped, lengths)
        moved = (a - b).abs().amax(1)
        assert (moved > least).all() if text else (moved < 1e-6).all()


def test_above_its_bound_the_temperature_can_rise_but_not_fall() -> None:
    """`clamp` alone would let no gradient pass and hold it there for good."""
    parts = (*batch(6), torch.arange(6), torch.ones(6, dtype=torch.bool))
    model = tiny_contrastive()
    gradients, losses = [], []
    # At random weights a lower scale is better; with captions that are their pictures, a higher.
    for is_matched in (False, True):
        if is_matched:
            model.embed_texts = lambda *_: model.embed_images(parts[0]).detach()  # type: ignore[method-assign]
        for value in (MAX_SCALE - 1e-3, MAX_SCALE + 1.0):
            model.zero_grad()
            with torch.no_grad():
                model.logit_scale.fill_(value)
            loss_sum, _ = model(*parts)
            loss_sum.backward()
            assert model.logit_scale.grad is not None
            gradients.append(float(model.logit_scale.grad))
            losses.append(float(loss_sum.detach()))
    assert gradients[0] > 0 and gradients[1] > 0
    assert gradients[2] < 0 and gradients[3] == 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # the bound holds in the scores


@pytest.mark.parametrize(
    ("name", "published"),
    [("vision_clip_b16", 149_620_737), ("vision_clip_l14", 427_616_513)],
)
def test_the_clip_presets_have_the_published_models_sizes(name: str, published: int) -> None:
    """Parameters of OpenAI's ViT-B/16 and ViT-L/14, whose vocabulary has 49,408 entries."""
    path = PRESETS / f"{name}.yaml"
    config = load_config(path, ["model.vocab_size=49408"])
    assert sum(p.numel() for p in build_empty(config).parameters()) == published
    model = build_empty(config := load_config(path))
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in path.read_text()
    assert config.contrastive.text_len == 77
    decays = {
        (parameter.ndim > 1, group["weight_decay"])
        for group in parameter_groups(model, config)
        for parameter in group["params"]
    }
    assert decays == {(True, 0.2), (False, 0.0)}

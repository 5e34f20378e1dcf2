"""The contrastive objective against `transformers`' CLIP loss, and its positives."""

import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from mllm.model.contrastive import ContrastiveModel
from tests.model.test_decoder import VISION


def tiny_contrastive() -> ContrastiveModel:
    torch.manual_seed(0)
    return ContrastiveModel(
        VISION,
        vocab_size=97,
        embed_dim=16,
        initial_temperature=0.07,
    )


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = torch.randint(3, 10, (size,))
    token_ids = torch.randint(8, 97, (size, 10))
    token_ids[torch.arange(10) >= lengths[:, None]] = 1
    return torch.randn(size, 3, 16, 16), token_ids, lengths


def test_with_distinct_captions_the_loss_is_clips() -> None:
    model = tiny_contrastive()
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


def test_padding_behind_a_caption_changes_nothing() -> None:
    model = tiny_contrastive().eval()
    _, token_ids, lengths = batch(5)
    changed = token_ids.clone()
    changed[torch.arange(10) >= lengths[:, None]] = 50
    with torch.no_grad():
        a, b = model.embed_texts(token_ids, lengths), model.embed_texts(changed, lengths)
    assert (a - b).abs().max() < 1e-6


def test_unused_pairs_are_as_if_they_were_not_there() -> None:
    model = tiny_contrastive()
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

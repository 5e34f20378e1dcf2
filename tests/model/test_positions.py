"""xPos against the paper's formula and torchscale's; blockwise attention against a dense mask."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, StaticCache

from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from mllm.model.xpos import BASE, GAMMA, SCALE_BASE, XPos
from tests.model.test_decoder import tiny

PLACES = [0, 1, 5, 17, 100, 511, 900, 1500, 2047]


def scores_of(query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    xpos = XPos(positions, head_dim=query.shape[-1], centre=1024, dtype=query.dtype)
    q, k = xpos.rotate(query, key)
    return torch.einsum("bthk,bshk->bhts", q, k)


def test_xpos_scores_follow_the_closed_form() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 9, 2, 8, dtype=torch.float64)
    scores = scores_of(query, key, torch.tensor([PLACES]))
    for m in range(9):
        for n in range(m + 1):
            r = float(PLACES[m] - PLACES[n])
            for head in range(2):
                a, b = query[0, m, head], key[0, n, head]
                expected = 0.0
                for i in range(4):
                    theta, zeta = BASE ** (-2 * i / 8), (2 * i / 8 + GAMMA) / (1 + GAMMA)
                    x0, x1, y0, y1 = a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1]
                    expected += zeta ** (r / SCALE_BASE) * (
                        (x0 * y0 + x1 * y1) * math.cos(r * theta)
                        - (x1 * y0 - x0 * y1) * math.sin(r * theta)
                    )
                assert abs(scores[0, head, m, n] - expected) < 2e-3


def torchscale_xpos(x: torch.Tensor, downscale: bool) -> torch.Tensor:
    """What torchscale computes for x (H, T, K) without an offset, said in other words."""
    length, head_dim = x.shape[1:]
    base = (torch.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim)
    first = -(length // 2) - length % 2  # its floor division of a negative number
    scale = base ** ((torch.arange(length) + first) / 512)[:, None]
    if downscale:
        scale = 1 / scale
    frequency = 10000.0 ** -(torch.arange(head_dim // 2) / (head_dim // 2))
    angle = torch.arange(length)[:, None] * frequency  # (T, K/2)
    even, odd = x[..., ::2], x[..., 1::2]
    turned_even = (even * angle.cos() - odd * angle.sin()) * scale
    turned_odd = (odd * angle.cos() + even * angle.sin()) * scale
    return torch.stack((turned_even, turned_odd), -1).flatten(-2)


@pytest.mark.parametrize("length", [16, 33])
def test_xpos_scores_are_those_of_torchscale(length: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, length, 2, 64)
    theirs = torchscale_xpos(query[0].transpose(0, 1), downscale=False) @ torchscale_xpos(
        key[0].transpose(0, 1), downscale=True
    ).transpose(1, 2)  # (H, T, T)
    ours = scores_of(query, key, torch.arange(length)[None])
    assert (ours[0] - theirs).abs().max() < 1e-4


# --------------------------------------------------------------------------- longer than trained
@pytest.fixture(scope="module")
def long_model() -> MultimodalModel:
    """Trained length 16, so blocks of 8."""
    return build(tiny(seq_len=16, blockwise_attention=True), seed=5).eval()


def plain_twin(model: MultimodalModel) -> MultimodalModel:
    twin = build(tiny(seq_len=16), seed=5).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def test_within_the_trained_length_blockwise_changes_no_bit(long_model: MultimodalModel) -> None:
    embeddings, positions = torch.randn(2, 16, 48), torch.arange(16).expand(2, -1)
    with torch.no_grad():
        a = long_model.decoder(embeddings, positions)
        b = plain_twin(long_model).decoder(embeddings, positions)
    assert torch.equal(a, b)


def blockwise_reference(model: MultimodalModel, embeddings: torch.Tensor) -> torch.Tensor:
    """Full attention under a dense mask of own and previous block: one centre for everything."""
    length = embeddings.shape[1]
    places = torch.arange(length)
    blocks = places // 8
    mask = (places <= places[:, None]) & (blocks[:, None] - blocks <= 1)
    with torch.no_grad():
        return plain_twin(model).decoder(embeddings, places[None], mask=mask[None, None])


def test_a_long_input_sees_its_own_block_and_the_one_before(long_model: MultimodalModel) -> None:
    embeddings = torch.randn(1, 61, 48)
    with torch.no_grad():
        ours = long_model.decoder(embeddings, torch.arange(61)[None])
        full = plain_twin(long_model).decoder(embeddings, torch.arange(61)[None])
    assert (ours - blockwise_reference(long_model, embeddings)).abs().max() < 1e-4
    assert (ours - full)[:, 16:].abs().max() > 1e-2  # the planted fault: no blocks


@pytest.mark.parametrize("static", [False, True])
def test_cached_decoding_of_a_long_input_equals_full_recomputation(
    long_model: MultimodalModel, static: bool
) -> None:
    config = MllmConfig.from_model_config(long_model.config)
    model = MllmForConditionalGeneration(config).eval()
    model.model.load_state_dict(long_model.state_dict())
    token_ids = torch.randint(8, 97, (2, 50))
    attention_mask = torch.ones_like(token_ids)
    attention_mask[0, :11] = 0  # padded on the left
    cache = StaticCache(config, max_cache_len=64) if static else DynamicCache(config=config)
    with torch.no_grad():
        alone = model(token_ids[:1, 11:]).logits
        whole = model(token_ids, attention_mask=attention_mask).logits
        parts = [
            model(
                token_ids[:, start:stop],
                attention_mask=attention_mask[:, :stop],
                past_key_values=cache,
            ).logits
            for start, stop in ((0, 14), (14, 15), (15, 40), (40, 41), (41, 50))
        ]
    assert (whole[:1, 11:] - alone).abs().max() < 1e-4
    difference = (torch.cat(parts, 1) - whole).abs() * attention_mask[..., None]
    assert difference.max() < 1e-4


def test_very_long_inputs_stay_finite_in_bf16() -> None:
    """With one centre, a factor at position 65,536 would be 0.2857^-126: beyond float32."""
    positions = torch.tensor([[65_530, 65_535]])
    for centre, is_finite in ((1024, False), (65_536 - 1024, True)):
        factors = XPos(positions, head_dim=64, centre=centre, dtype=torch.bfloat16)
        assert all(bool(f.isfinite().all()) for f in factors.key) == is_finite
    model = build(tiny(seq_len=16, blockwise_attention=True), seed=0).eval().bfloat16()
    with torch.no_grad():
        hidden = model.decoder(torch.randn(1, 3000, 48).bfloat16(), torch.arange(3000)[None])
    assert bool(hidden.isfinite().all())


def test_loss_of_a_long_text_is_sensible(long_model: MultimodalModel) -> None:
    """Far in, logits are those of the same text begun two blocks earlier: nothing drifts."""
    embeddings = torch.randn(1, 400, 48)
    one_layer = build(tiny(seq_len=16, blockwise_attention=True, num_layers=1), seed=5).eval()
    with torch.no_grad():
        whole = one_layer.decoder(embeddings, torch.arange(400)[None])
        tail = one_layer.decoder(embeddings[:, 376:], torch.arange(24)[None])
    assert F.cosine_similarity(whole[0, 384:], tail[0, 8:], dim=-1).min() > 0.9999

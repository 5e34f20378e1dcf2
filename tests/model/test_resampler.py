"""Resamplers against `transformers`' class and Flamingo's formula; the encoder's switches."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers import Kosmos2Config
from transformers.models.kosmos2.modeling_kosmos2 import (
    Kosmos2ImageToTextProjection,
    Kosmos2TextSinusoidalPositionalEmbedding,
)

from mllm.model.config import ModelConfig
from mllm.model.decoder import sinusoid
from mllm.model.init import build
from mllm.model.resampler import AttentionResampler, PerceiverResampler
from mllm.model.vision import VisionEncoder
from tests.model.test_decoder import VISION, tiny


def test_the_one_layer_resampler_is_that_of_kosmos2() -> None:
    config = tiny()
    theirs = Kosmos2ImageToTextProjection(
        Kosmos2Config(
            text_config={
                "embed_dim": config.model_dim,
                "attention_heads": config.num_heads,
                "attention_dropout": 0.0,
            },
            vision_config={"hidden_size": config.vision.width},
            latent_query_num=config.num_latents,
        )
    ).eval()
    ours = AttentionResampler(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(3, 5, config.vision.width)
    with torch.no_grad():
        assert (ours(features) - theirs(features)[0]).abs().max() < 1e-5


def test_sinusoids_are_those_of_kosmos2() -> None:
    """Theirs skips the padding id, 1: the first token has position 2."""
    table = Kosmos2TextSinusoidalPositionalEmbedding(70, 48, padding_idx=1)
    token_ids = torch.randint(4, 97, (2, 60))
    theirs = table(token_ids)
    assert (sinusoid(torch.arange(60).expand(2, -1), 48) - theirs).abs().max() < 1e-6


def flamingo(
    weights: dict[str, torch.Tensor], features: torch.Tensor, config: ModelConfig
) -> torch.Tensor:
    """Flamingo A.1.1: latents += attention(latents, [features, latents]); latents += ffn(latents),
    each behind a LayerNorm, with one picture and all heads written out.
    """

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    media, x = linear(features, "dense"), weights["latent_query"]  # (P, D), (L, D)
    for i in range(config.resampler_layers):
        layer = f"layers.{i}."
        queries = norm(x, f"{layer}latents_norm")
        context = torch.cat((norm(media, f"{layer}features_norm"), queries))
        q = linear(queries, f"{layer}x_attn.q_proj")
        k, v = linear(context, f"{layer}x_attn.k_proj"), linear(context, f"{layer}x_attn.v_proj")
        heads = []
        for head in range(config.num_heads):
            part = slice(head * config.head_dim, (head + 1) * config.head_dim)
            scores = q[:, part] @ k[:, part].T / config.head_dim**0.5
            heads.append(scores.softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(heads, -1), f"{layer}x_attn.out_proj")
        hidden = linear(norm(x, f"{layer}ffn_norm"), f"{layer}fc1")
        x = x + linear(hidden.clamp(min=0) ** 2, f"{layer}fc2")
    return norm(x, "norm")


def test_the_perceiver_follows_flamingo() -> None:
    config = tiny(resampler="perceiver", resampler_layers=2)
    ours = PerceiverResampler(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = torch.randn(3, 5, config.vision.width)
    with torch.no_grad():
        latents = ours(features)
        assert latents.shape == (3, config.num_latents, config.model_dim)
        for i in range(3):
            expected = flamingo(ours.state_dict(), features[i], config)
            assert (latents[i] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("resampler", ["attention", "perceiver"])
def test_attention_dropout_acts_in_the_resampler_in_training_only(resampler: str) -> None:
    model = build(tiny(resampler=resampler, attention_dropout=0.5), seed=0)
    features = torch.randn(1, 5, VISION.width)
    for training in (True, False):
        model.train(training)
        same = torch.equal(model.resampler(features), model.resampler(features))
        assert same != training


# ------------------------------------------------------------------------------ vision switches
def features_of(**switches: bool) -> torch.Tensor:
    torch.manual_seed(0)
    encoder = VisionEncoder(dataclasses.replace(VISION, **switches)).eval()
    torch.nn.init.normal_(encoder.vision_model.post_layernorm.weight)
    torch.manual_seed(1)
    with torch.no_grad():
        return encoder(torch.randn(2, 3, 16, 16))


def test_the_encoders_switches_do_what_they_say() -> None:
    whole = features_of()
    raw = features_of(post_layer_norm=False, normalise_features=False)
    assert whole.shape == raw.shape == (2, VISION.num_features, VISION.width) == (2, 5, 24)
    assert torch.allclose(whole.norm(dim=-1), torch.ones(2, 5))
    normed = features_of(normalise_features=False)
    assert torch.allclose(F.normalize(normed, dim=-1), whole)
    assert torch.allclose(features_of(post_layer_norm=False), F.normalize(raw, dim=-1))
    assert torch.equal(features_of(keep_cls=False), whole[:, 1:])
    assert dataclasses.replace(VISION, keep_cls=False).num_features == 4


@pytest.mark.parametrize(
    ("post_layer_norm", "train_last_blocks"), [(True, 0), (True, 1), (True, 9), (False, 9)]
)
def test_gradient_reaches_what_freeze_leaves_open(
    post_layer_norm: bool, train_last_blocks: int
) -> None:
    encoder = VisionEncoder(dataclasses.replace(VISION, post_layer_norm=post_layer_norm))
    encoder.freeze(train_last_blocks)
    names = [name for name, p in encoder.named_parameters() if p.requires_grad]
    if names:
        # Not a plain sum: LayerNorm keeps that constant.
        (encoder(torch.randn(2, 3, 16, 16)) * torch.randn(5, 24)).sum().backward()
    for name, parameter in encoder.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.any())
        # A key's bias moves every score of a query alike: its gradient is nothing but rounding.
        assert has_gradient == parameter.requires_grad or name.endswith("k_proj.bias"), name
    assert ("vision_model.post_layernorm.weight" in names) == (
        post_layer_norm and train_last_blocks > 0
    )
    assert (len(names) == len(list(encoder.parameters()))) == (
        post_layer_norm and train_last_blocks == 9
    )

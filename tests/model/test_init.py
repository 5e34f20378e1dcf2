"""Initial values by their statistics, and the paper's parameter counts."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import mllm
from mllm.config import load_config
from mllm.model.config import ModelConfig
from mllm.model.init import build, count_parameters, magneto_gain
from mllm.model.multimodal import MultimodalModel
from mllm.model.resampler import PerceiverResampler
from tests.model.test_decoder import tiny

PAPER_PRESET = Path(mllm.__file__).parent / "configs" / "kosmos1_1.6b.yaml"


def counts_of(config: ModelConfig) -> dict[str, int]:
    with torch.device("meta"):
        model = MultimodalModel(config)
    return {name: total for name, (total, _) in count_parameters(model).items()}


def test_the_papers_preset_has_the_papers_parameters() -> None:
    config = load_config(PAPER_PRESET)
    assert counts_of(config.model) == {
        "vision": 303_179_776,
        "resampler": 19_015_680,
        "decoder": 1_340_180_480,
        "head": 0,  # tied
    }
    with torch.device("meta"):
        model = MultimodalModel(config.model)
    assert sum(p.numel() for p in model.parameters()) == 1_662_375_936
    assert model.decoder.embed_tokens.weight.numel() == 131_086_336
    # One open CLIP block and ln_post: about 1.372B are trained.
    model.vision.freeze(config.train.train_last_blocks)
    trained = sum(trainable for _, trainable in count_parameters(model).values())
    assert trained == 1_340_180_480 + 19_015_680 + 12_596_224 + 2 * 1024


def test_a_preset_of_flamingos_perceiver_is_counted_by_layer() -> None:
    dim = 2048
    layer = 4 * (dim * dim + dim) + (dim * 4 * dim + 4 * dim) + (4 * dim * dim + dim) + 6 * dim
    outside = (1024 * dim + dim) + 64 * dim + 2 * dim  # dense, queries, last norm
    for num_layers in (1, 6):
        config = ModelConfig(resampler="perceiver", resampler_layers=num_layers)
        assert counts_of(config)["resampler"] == outside + num_layers * layer


def check_linears(layer: nn.Module, gain: float, base_std: str) -> None:
    """std of the six linears of a decoder layer, relative to their base distribution."""
    for name, linear in layer.named_modules():
        if not isinstance(linear, nn.Linear):
            continue
        expected = gain if name.endswith(("fc1", "fc2", "v_proj", "out_proj")) else 1.0
        fan_out, fan_in = linear.weight.shape
        if base_std == "xavier":
            std = math.sqrt(2 / (fan_in + fan_out))
            assert not linear.bias.any()
        else:  # nn.Linear: uniform within fan_in^-0.5
            std = fan_in**-0.5 / math.sqrt(3)
            bound = expected * fan_in**-0.5
            assert linear.weight.abs().max() <= bound and linear.bias.abs().max() <= bound
            assert linear.bias.abs().max() > 0.8 * bound  # biases are scaled too
        assert abs(linear.weight.std().item() / (expected * std) - 1) < 0.05, name


@pytest.mark.parametrize("init", ["xavier", "torchscale"])
def test_magneto_gain_scales_exactly_fc1_fc2_v_and_out(init: str) -> None:
    config = tiny(model_dim=128, ffn_dim=512, init=init)
    layer = build(config, seed=0).decoder.layers[0]
    gain = magneto_gain(config.num_layers)
    assert abs(magneto_gain(24) - 1.9675) < 1e-4
    check_linears(layer, gain, init)
    with pytest.raises(AssertionError):  # the planted fault: another gain
        check_linears(layer, 1.1 * gain, init)


def test_embeddings_have_unit_variance_under_their_scale() -> None:
    weight = build(tiny(vocab_size=2000, model_dim=128), seed=0).decoder.embed_tokens.weight
    assert abs((weight * math.sqrt(128)).std().item() - 1) < 0.02


@pytest.mark.parametrize("resampler", ["attention", "perceiver"])
def test_resamplers_start_as_fairseqs_attention(resampler: str) -> None:
    config = tiny(model_dim=128, num_latents=60, resampler=resampler, resampler_layers=2)
    module = build(config, seed=0).resampler
    assert abs(module.latent_query.std().item() - 1) < 0.03
    attention = module.layers[1].x_attn if resampler == "perceiver" else module.x_attn
    bound = math.sqrt(6 / 256)
    for proj in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert 0.97 * bound / math.sqrt(2) < proj.weight.abs().max() <= bound / math.sqrt(2)
        assert proj.bias.any()
    assert 0.97 * bound < attention.out_proj.weight.abs().max() <= bound
    assert not attention.out_proj.bias.any()
    if isinstance(module, PerceiverResampler):
        latents = module(torch.randn(2, 5, config.vision.width)) * math.sqrt(128)
        assert abs(latents.std().item() - 1) < 0.1  # as tokens


def test_equal_seeds_give_equal_weights_and_leave_the_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = (build(tiny(), seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["decoder.embed_tokens.weight"], c["decoder.embed_tokens.weight"])

"""Every initial value in one place (kosmos-1.md 1.3, 1.4), and how many parameters that makes."""

import math

import torch
from torch import nn

from mllm.model.config import ModelConfig
from mllm.model.multimodal import MultimodalModel
from mllm.model.resampler import CrossAttention, PerceiverLayer, PerceiverResampler

SCALED = ("fc1", "fc2", "v_proj", "out_proj")  # q_proj and k_proj keep gain 1


def magneto_gain(num_layers: int) -> float:
    """sqrt(ln 2M) of a decoder with M layers (Magneto 3.2)."""
    return math.sqrt(math.log(2 * num_layers))


def build(config: ModelConfig, seed: int) -> MultimodalModel:
    """A model with initial values from `seed`; the ViT's are those `transformers` gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultimodalModel(config)
        initialise(model)
    return model


@torch.no_grad()
def initialise(model: MultimodalModel) -> None:
    """Fills resampler and decoder from torch's generator."""
    config = model.config
    gain = magneto_gain(config.num_layers)
    for name, module in model.decoder.named_modules():
        if isinstance(module, nn.Linear):
            _init_linear(module, gain if name.endswith(SCALED) else 1.0, config)
    # std D^-0.5 becomes unit variance under the embedding scale sqrt(D).
    nn.init.normal_(model.decoder.embed_tokens.weight, std=config.model_dim**-0.5)
    _init_resampler(model)


def _init_linear(linear: nn.Linear, gain: float, config: ModelConfig) -> None:
    if config.init == "torchscale":
        linear.reset_parameters()
        linear.weight.mul_(gain)
        linear.bias.mul_(gain)
        return
    nn.init.xavier_normal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)


def _init_resampler(model: MultimodalModel) -> None:
    """fairseq: q, k, v Xavier-uniform with gain 1/sqrt(2), out with gain 1; queries N(0, 1)."""
    resampler = model.resampler
    resampler.dense.reset_parameters()
    nn.init.normal_(resampler.latent_query)
    for module in resampler.modules():
        if isinstance(module, CrossAttention):
            for proj in (module.q_proj, module.k_proj, module.v_proj):
                proj.reset_parameters()
                nn.init.xavier_uniform_(proj.weight, 1 / math.sqrt(2))
            nn.init.xavier_uniform_(module.out_proj.weight)
            nn.init.zeros_(module.out_proj.bias)
        elif isinstance(module, PerceiverLayer):
            for linear in (module.fc1, module.fc2):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
    if isinstance(resampler, PerceiverResampler):
        # Latents start at the scale of token embeddings: both meet sqrt(D) next.
        nn.init.constant_(resampler.norm.weight, model.config.model_dim**-0.5)


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(all, trainable) parameters of each direct part; tied ones count where they are first."""
    seen: set[int] = set()
    counts = {}
    for name, part in model.named_children():
        fresh = [p for p in part.parameters() if id(p) not in seen]
        seen.update(id(p) for p in fresh)
        counts[name] = (
            sum(p.numel() for p in fresh),
            sum(p.numel() for p in fresh if p.requires_grad),
        )
    return counts

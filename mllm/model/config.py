"""The sizes and switches of a model: everything that decides its parameters and its logits."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


def _check_positive(config: Any) -> None:
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{field_.name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP ViT. The defaults are CLIP ViT-L/14 at 224 pixels, the encoder of KOSMOS-1."""

    image_size: int = 224  # pixels a side
    patch_size: int = 14  # pixels a side
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_dim: int = 4096
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    post_layer_norm: bool = True  # ln_post on every token (kosmos-2 code)
    normalise_features: bool = True  # L2 per token (kosmos-2 code)
    keep_cls: bool = True  # CLS stands first among the features (kosmos-2 code)

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision.image_size {self.image_size} is no multiple of "
                f"vision.patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"vision.width {self.width} is no multiple of vision.num_heads {self.num_heads}"
            )

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_features(self) -> int:
        """Features of one picture (P): its patches, and CLS where it is kept."""
        return self.num_patches + self.keep_cls


@dataclass(frozen=True)
class TextConfig:
    """CLIP's text Transformer, beside the ViT in the vision stage. The defaults are ViT-B's."""

    width: int = 512
    num_layers: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.width % self.num_heads:
            raise ValueError(
                f"contrastive.text.width {self.width} is no multiple of "
                f"contrastive.text.num_heads {self.num_heads}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """KOSMOS-1's architecture; the defaults are the paper's 1.6B model (K1 table 17)."""

    vocab_size: int = 64007
    seq_len: int = 2048  # positions in a training row
    model_dim: int = 2048
    num_layers: int = 24
    num_heads: int = 32
    ffn_dim: int = 8192
    position: Literal["xpos", "sinusoidal"] = "xpos"
    # Inputs longer than seq_len: each query sees its block of seq_len / 2 positions and the one
    # before (xPos, 3.2). Shorter ones are computed as without it.
    blockwise_attention: bool = False
    # One cross-attention (Kosmos-2; what the paper's parameter count allows), or Flamingo's
    # perceiver of resampler_layers x (attention + FFN).
    resampler: Literal["attention", "perceiver"] = "attention"
    resampler_layers: int = 6  # of the perceiver
    num_latents: int = 64  # positions that one picture takes, without <image> and </image>
    # Share of the embeddings' and sublayers' outputs that training drops; masks follow from (seed,
    # step, row, layer), so they are the same for any number of ranks and micro-steps.
    dropout: float = 0.1
    # Share of the attention probabilities; drawn inside the kernels for (seed, step, rank,
    # micro-step), so another number of ranks or micro-steps has other masks.
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    # Base distribution under the Magneto gain: Xavier, weights only (Magneto 3.2), or what
    # torchscale does in effect: nn.Linear's own, times the gain, biases too.
    init: Literal["xavier", "torchscale"] = "xavier"
    vision: VisionConfig = field(default_factory=VisionConfig)

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"model_dim {self.model_dim} is no multiple of num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; xPos rotates pairs")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if self.blockwise_attention and (self.position != "xpos" or self.seq_len % 2):
            raise ValueError("blockwise_attention needs position: xpos and an even seq_len")
        if self.seq_len < self.num_latents + 3:
            raise ValueError(
                f"seq_len {self.seq_len} cannot hold one picture of num_latents "
                f"{self.num_latents} (+ <s>, <image>, </image>)"
            )

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict`. An unknown key is a `TypeError`."""
        return cls(**{**values, "vision": VisionConfig(**values["vision"])})

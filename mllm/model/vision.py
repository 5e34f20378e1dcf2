"""The vision encoder: `transformers`' CLIP ViT, its last hidden states on all tokens.

Letters: I pictures, S pixels a side, P patch features with CLS.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mllm.model.config import VisionConfig


class VisionEncoder(nn.Module):
    """Normalised pixels in, patch features out."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.vision_model = CLIPVisionModel(
            CLIPVisionConfig(
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_size=config.width,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.mlp_dim,
                hidden_act=config.activation,
            )
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixels: float (I, 3, S, S), normalised with CLIP's mean and deviation.

        Returns:
            Patch features (I, P, width): CLS first; CLS, LayerNorm and L2 norm as configured.
        """
        features = self.vision_model(pixels).last_hidden_state  # (I, 1 + patches, width)
        if not self.config.keep_cls:
            features = features[:, 1:]
        if self.config.post_layer_norm:
            features = self.vision_model.post_layernorm(features)
        if self.config.normalise_features:
            features = F.normalize(features, dim=-1)
        return features

    def freeze(self, train_last_blocks: int) -> None:
        """Leaves the last N blocks and the final LayerNorm trainable; all of it when N covers all.

        KOSMOS-1 freezes "all but the last layer" without saying which parameters those are; the
        reading here is the last block and ln_post.
        """
        blocks = self.vision_model.encoder.layers
        num_trained = min(max(train_last_blocks, 0), len(blocks))
        self.requires_grad_(num_trained == len(blocks))
        for block in blocks[len(blocks) - num_trained :]:
            block.requires_grad_(True)
        is_used = self.config.post_layer_norm and num_trained > 0
        self.vision_model.post_layernorm.requires_grad_(is_used)

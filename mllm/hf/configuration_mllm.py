"""The model's sizes and switches as `transformers` keeps them: `ModelConfig`, field by field."""

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from mllm.model.config import ModelConfig, VisionConfig
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, PAD_ID, SLOT_ID


class MllmConfig(PreTrainedConfig):
    """Fields of `ModelConfig` under their own names, and the ids that the processor places.

    `transformers`' names (`hidden_size`, `num_hidden_layers`, ...) reach the same values. Fields
    that are not declared here come from `ModelConfig`, defaults included.
    """

    model_type = "mllm"
    attribute_map = {  # noqa: RUF012 (an attribute of the base class)
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "ffn_dim",
        "max_position_embeddings": "seq_len",
    }

    vocab_size: int = 64007
    seq_len: int = 2048
    model_dim: int = 2048
    num_layers: int = 24
    num_heads: int = 32
    ffn_dim: int = 8192
    vision: dict[str, Any] | None = None  # `VisionConfig`, field by field
    tie_word_embeddings: bool = True
    image_token_id: int = SLOT_ID  # stands at each image position; what `generate` looks for
    boi_token_id: int = BOI_ID
    eoi_token_id: int = EOI_ID
    bos_token_id: int = BOS_ID
    pad_token_id: int = PAD_ID
    eos_token_id: int = EOS_ID

    def __post_init__(self, **settings: Any) -> None:
        if self.vision is None:
            self.vision = dataclasses.asdict(VisionConfig())
        declared = {field.name for field in dataclasses.fields(self)}
        defaults = {k: v for k, v in ModelConfig().to_dict().items() if k not in declared}
        super().__post_init__(**{**defaults, **settings})

    @property
    def max_positions(self) -> int | None:
        """Positions that a prompt and its answer may take; None: any number, by blocks."""
        return None if self.blockwise_attention else self.seq_len

    def to_model_config(self) -> ModelConfig:
        """What `MultimodalModel` is built from."""
        names = [field.name for field in dataclasses.fields(ModelConfig)]
        return ModelConfig.from_dict({name: getattr(self, name) for name in names})

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> "MllmConfig":
        return cls(**config.to_dict())

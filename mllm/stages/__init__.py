"""What differs between stages: objective, stream, what is counted and logged, how it validates."""

from mllm.config import Config
from mllm.preflight import check_tokenizer
from mllm.stages.contrast import vision_stage
from mllm.stages.language import language_stage
from mllm.stages.stage import Stage

__all__ = ["Stage", "build_stage"]


def build_stage(config: Config) -> Stage:
    """Checks the tokenizer against the model and builds the stage that `config.stage` names."""
    check_tokenizer(config)
    return vision_stage(config) if config.stage == "vision" else language_stage(config)

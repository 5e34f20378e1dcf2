"""What differs between stages: objective, stream, what is counted and logged, how it validates."""

from mllm.config import Config
from mllm.errors import UserError
from mllm.stages.contrast import vision_stage
from mllm.stages.language import language_stage
from mllm.stages.stage import Stage
from tokenizer.tokenizer import Tokenizer

__all__ = ["Stage", "build_stage"]


def build_stage(config: Config) -> Stage:
    """Checks the tokenizer against the model and builds the stage that `config.stage` names."""
    tokenizer = Tokenizer(config.tokenizer)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size} but {config.tokenizer} has "
            f"{tokenizer.vocab_size} pieces; set model.vocab_size to that"
        )
    return vision_stage(config) if config.stage == "vision" else language_stage(config)

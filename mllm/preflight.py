"""What a config says, held against itself and this machine before anything is started or written.

`mllm train` asks before it starts ranks; each node's first rank asks again, for what another
launcher starts and for files that one node lacks.
"""

from pathlib import Path

import yaml

from corpora.reader import Corpus
from mllm import dist
from mllm.config import Config, Precision, SourceConfig
from mllm.engine_config import check_attention_backend, deepspeed_config, resolve_precision
from mllm.errors import UserError
from tokenizer.tokenizer import Tokenizer


def check_everywhere(config: Config) -> None:
    """`check_config` on every node. All ranks call it, and all raise what the lowest rank found."""
    problem = None
    if dist.local_rank() == 0:
        try:
            check_config(config, dist.world_size())
        except UserError as error:
            problem = str(error)
    if problem := dist.first_problem(problem):
        raise UserError(problem)


def check_config(config: Config, world_size: int) -> None:
    """Refuses what could not be trained; sizes within the model were checked when it was read.

    Raises:
        UserError: the first thing found, with its key.
    """
    precision = _precision(config)
    check_attention_backend(config, precision)
    deepspeed_config(config, precision, world_size)  # batch sizes, zero.config, precision
    rows = world_size * config.train.micro_batch_size
    if config.stage == "vision" and rows != config.train.global_batch_size:
        raise UserError(
            f"stage vision compares all pairs of a step: train.global_batch_size "
            f"{config.train.global_batch_size} must be {world_size} ranks x "
            f"train.micro_batch_size {config.train.micro_batch_size} = {rows}"
        )
    if config.stage == "vision" and config.train.activation_checkpointing != "none":
        raise UserError(
            f"train.activation_checkpointing {config.train.activation_checkpointing}: stage vision "
            "has none; take it away and lower train.micro_batch_size for more ranks"
        )
    check_tokenizer(config)
    if not config.data.mixture:
        raise UserError("data.mixture names no source; give each a name and the path of its shards")
    for source in config.data.mixture:
        _check_source(source, config.data.index_of(source.name), "data.mixture")
    for source in config.data.validation:
        index_dir = config.data.index_of(source.name, is_validation=True)
        _check_source(source, index_dir, "data.validation")
    for path in config.data.exclude:
        if not Path(path).is_file():
            raise UserError(f"data.exclude: no file {path}; mend the path or leave it out")
    if not any((Path(config.run_dir) / "checkpoints").glob("step-*")):  # else they are not read
        _check_first_weights(config)


def _precision(config: Config) -> Precision:
    """The run's own where it has begun: `auto` then means that on any machine."""
    path = Path(config.run_dir) / "config.yaml"
    if config.train.precision == "auto" and path.is_file():
        try:
            return yaml.safe_load(path.read_text(encoding="utf-8"))["train"]["precision"]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            raise UserError(
                f"{path} is damaged, and so is what the run was begun with; "
                "bring it back or choose another run_dir"
            ) from None
    return resolve_precision(config.train.precision)


def check_tokenizer(config: Config) -> None:
    """Refuses one that is not there or not the model's."""
    tokenizer = Tokenizer(config.tokenizer)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size} but {config.tokenizer} has "
            f"{tokenizer.vocab_size} pieces; set model.vocab_size to that"
        )


def _check_source(source: SourceConfig, index_dir: str | None, key: str) -> None:
    try:
        Corpus(source.path, index_dir)
    except UserError as error:
        raise UserError(f"{key}: {source.name}: {error}") from None


def _check_first_weights(config: Config) -> None:
    if config.vision_weights and not Path(config.vision_weights).exists():
        raise UserError(f"vision_weights {config.vision_weights}: no such file or folder")
    if config.init_from is None:
        return
    source = Path(config.init_from)
    if not source.is_dir():
        raise UserError(f"init_from {source}: no such folder; name a run, checkpoint or export")
    whole = ("config.json", "manifest.json", "checkpoints/step-*/manifest.json")
    if not any(any(source.glob(pattern)) for pattern in whole):
        raise UserError(
            f"init_from {source}: no checkpoint in it; train that run first, or name a checkpoint "
            "or export folder"
        )

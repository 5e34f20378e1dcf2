"""One YAML file describes a run. Unknown keys are refused with the nearest name; the effective
values are written beside the run. Dotted overrides: `train.num_steps=100`.
"""

import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from mllm.errors import UserError
from mllm.model.config import ModelConfig, TextConfig
from mllm.sinks import SinkName
from mllm.stream.state import parse_windows

Kind = TypeVar("Kind")
# An explicit list: fsspec knows dozens more. `memory` is the process's own, for tests.
CHECKPOINT_STORE = re.compile(r"(s3|gs|file|memory)://(?!.*\.\.)[\w.=~/-]+")
Precision = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class SourceConfig:
    """One corpus in the mixture."""

    name: str  # shown in logs and metrics
    path: str  # folder of tar shards with their index
    weight: float = 1.0  # share of the mixture, in data.unit; any positive scale
    keep_colours: bool = False  # augmentation only moves its pictures: the texts name colours
    join_documents: float = 0.0  # share of rows that are one context, documents divided by </s>

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight {self.weight} of source {self.name!r} must be above 0")
        if not 0 <= self.join_documents <= 1:
            raise ValueError(f"join_documents {self.join_documents} of {self.name!r}: use 0 to 1")


@dataclass(frozen=True)
class DataConfig:
    mixture: list[SourceConfig] = field(default_factory=list)
    validation: list[SourceConfig] = field(default_factory=list)
    unit: Literal["tokens", "rows"] = "tokens"  # what the weights are shares of
    # Where indexes lie when the shards' folders are read-only: in NAME for a source of the mixture,
    # in validation/NAME for one of validation.
    index_dir: str | None = None
    resize: Literal["crop", "squash"] = "squash"  # how a picture becomes square
    augment: bool = False  # random shift, scale, turn and colour, drawn from (seed, sample, epoch)
    num_workers: NonNegativeInt = 2  # loader processes per rank; 0: one thread of the trainer's own
    score_image_start: bool = False  # predicting <image> counts in the loss; </image> never does
    # Stream steps that are never trained: "1000:1010" leaves out 1000 to 1009. They are the steps
    # of metrics.jsonl less one, plus what earlier windows leave out.
    exclude_steps: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)  # takedown lists (mllm/stream/takedown.py)

    def __post_init__(self) -> None:
        names = [source.name for source in self.mixture]
        if len(set(names)) != len(names):
            raise ValueError(f"data.mixture names a source twice: {names}")
        parse_windows(self.exclude_steps)

    def index_of(self, name: str, *, is_validation: bool = False) -> str | None:
        """Where the index of a source lies; None: beside its shards."""
        part = "validation/" if is_validation else ""
        return self.index_dir and f"{self.index_dir}/{part}{name}"


@dataclass(frozen=True)
class ContrastiveConfig:
    """The text side and the batch of the vision stage."""

    # bag: a caption is the mean of its tokens, a picture that of its patch features, and names are
    # learnt in few steps. transformer: CLIP's towers; a caption is read at </s>, a picture at CLS.
    text_tower: Literal["bag", "transformer"] = "bag"
    text: TextConfig = field(default_factory=TextConfig)  # sizes of the transformer
    embed_dim: PositiveInt = 256  # of the space where pictures and captions meet
    text_len: PositiveInt = 24  # tokens of a caption with <s> and </s>; longer ones are cut
    caption_prefix: str = (
        ""  # left off where a caption begins with it: what all share tells nothing
    )
    caption_end: str = ""  # characters; a caption is read up to the first of them
    text_lr_scale: float = 10.0  # of the bag's token embeddings, as a multiple of peak_lr
    initial_temperature: float = 0.07  # learnt from there; never below 0.01
    group_size: PositiveInt = 1  # neighbours in a corpus that stay together in a batch

    def __post_init__(self) -> None:
        if self.text_len < 3:
            raise ValueError(f"text_len {self.text_len}: at least 3, for <s>, a token and </s>")
        if self.initial_temperature <= 0:
            raise ValueError(f"initial_temperature {self.initial_temperature} must be above 0")

    @property
    def text_sizes(self) -> TextConfig | None:
        """Those of the Transformer; None: the text side is the bag."""
        return self.text if self.text_tower == "transformer" else None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate and decay of their own."""

    match: list[str]  # patterns of names, such as "*norm*", "*.bias", "decoder.embed_tokens.*"
    lr_scale: NonNegativeFloat = 1.0  # their peak_lr, as a multiple of train.peak_lr
    weight_decay: NonNegativeFloat | None = None  # None: train.weight_decay


@dataclass(frozen=True)
class TrainConfig:
    num_steps: PositiveInt = 1000
    micro_batch_size: PositiveInt = 4  # rows per rank and forward
    global_batch_size: PositiveInt = 8  # rows per step
    precision: Precision = "auto"  # auto: bf16 where it is native
    peak_lr: float = 2e-4
    warmup_steps: int = 375
    # From peak_lr down to final_lr_share of it. wsd stays at peak_lr up to its last decay_steps,
    # which fall linearly, so that a run can be made longer before them.
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    decay_steps: NonNegativeInt = 0
    final_lr_share: NonNegativeFloat = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.98)
    adam_eps: float = 1e-6
    weight_decay: float = 0.01
    # all: on every trainable parameter, as in the paper's code. matrices: not on biases, gains of
    # norms and CLIP's temperature, as CLIP has it.
    weight_decay_on: Literal["all", "matrices"] = "all"
    # Of a moving average of the weights beside the trained ones (`mllm export --average`); 0: none.
    ema_decay: NonNegativeFloat = 0.0
    gradient_clip: float = 2.0  # global L2 norm; 0 switches it off
    parameter_groups: list[ParameterGroup] = field(default_factory=list)  # the first match counts
    train_last_blocks: int = 1  # of the vision encoder; the number of its blocks: all of it
    freeze: list[str] = field(default_factory=list)  # patterns of names, such as "decoder.*"
    # The next four change what a step costs, not what it computes.
    attention_backend: Literal["sdpa", "flash_attn", "xformers"] = "sdpa"  # of packed rows
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # per block
    compile: bool = False  # torch.compile of the decoder's block, at the first step
    # Sums in one order on a GPU too, so that a run repeats to the bit; slower, and an operation
    # without such a kernel stops the run. A CPU does so anyway.
    deterministic: bool = False
    vision_lr_scale: float = 1.0  # peak_lr of the vision encoder, as a multiple
    checkpoint_every: PositiveInt = 100  # steps
    keep_checkpoints: PositiveInt = 2
    async_checkpoints: bool = True  # written beside training, from a copy in host memory
    # s3://, gs:// or file:// folder of this run alone: finished checkpoints are uploaded there and,
    # where the run folder's are gone, fetched from there. Needs the extra `remote`.
    checkpoint_store: str | None = None
    validate_every: PositiveInt = 100  # steps
    validation_rows: PositiveInt = 32  # per validation source
    generation_samples: NonNegativeInt = 4  # pictures described when validating, per source
    generation_tokens: PositiveInt = 24  # of each description
    # A loss above the median of the last `spike_window` by that many standard deviations is a
    # spike; 0: nothing is.
    spike_sigmas: NonNegativeFloat = 8.0
    spike_window: PositiveInt = 100  # steps
    # So many in a row, and the run goes back to the last checkpoint before them and leaves their
    # data out; when it has done so `max_rollbacks` times, it stops.
    max_skipped_steps: PositiveInt = 10  # non-finite gradients
    max_spikes: PositiveInt = 10
    max_rollbacks: NonNegativeInt = 1
    max_bad_samples: PositiveInt = 1000  # masked in one process, then the run stops
    dry_pass: bool = True  # the largest micro-batch once before the first step: does it fit?
    sinks: list[SinkName] = field(default_factory=list)  # tensorboard, wandb, trackio
    sink_project: str = "mllm"  # what wandb and trackio file the run under
    # A rank that does not come on for so long ends the job: longer than the longest step,
    # validation or checkpoint.
    hang_timeout_seconds: PositiveFloat = 1800.0
    # From the process's start, "3:55:00", "90m" or seconds: saves and stops (exit code 75) before.
    time_limit: str | float | None = None

    def __post_init__(self) -> None:
        if (limit := self.time_limit_seconds) is not None and limit <= 0:
            raise ValueError(f"train.time_limit {self.time_limit!r} must be above 0")
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"train.micro_batch_size {self.micro_batch_size} does not divide "
                f"train.global_batch_size {self.global_batch_size}"
            )
        room = self.num_steps - self.warmup_steps
        if self.schedule == "wsd" and not 0 < self.decay_steps <= room:
            raise ValueError(
                f"train.schedule wsd needs train.decay_steps, from 1 to {room} (num_steps without "
                f"warmup_steps), not {self.decay_steps}"
            )
        if self.ema_decay >= 1:
            raise ValueError(f"train.ema_decay {self.ema_decay}: use 0 to below 1, such as 0.999")
        if self.final_lr_share > 1:
            raise ValueError(f"train.final_lr_share {self.final_lr_share}: use 0 to 1")
        store = self.checkpoint_store
        if store is not None and not CHECKPOINT_STORE.fullmatch(store):
            raise ValueError(
                f"train.checkpoint_store {store.rpartition('@')[2]}: use a plain s3://, gs:// or "
                "file:// URL of a folder; credentials belong into the environment"
            )

    @property
    def time_limit_seconds(self) -> float | None:
        return None if self.time_limit is None else parse_seconds(self.time_limit)


@dataclass(frozen=True)
class ZeroConfig:
    stage: Literal[0, 1, 2, 3] = 1  # picks deepspeed_configs/zero{stage}.json
    config: str | None = None  # another DeepSpeed file; it must name the same stage


@dataclass(frozen=True)
class Config:
    run_dir: str
    tokenizer: str  # folder of tokenizer.model
    stage: Literal["vision", "pretrain", "instruct"] = "pretrain"
    seed: int = 0
    init_from: str | None = None  # run, checkpoint or export folder; weights only
    # CLIP's, for a new run: a `transformers` folder or an open_clip / OpenAI state dict.
    vision_weights: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# What other trainers call a key, where the nearest name would mislead.
KNOWN_ELSEWHERE = {
    "train.skip_steps": "data.exclude_steps, windows of stream steps such as [1000:1010]",
}

# What a run folder may be continued with. Everything not named here is refused: it would make the
# rest of the run another run.
ALLOWED_ON_RESUME = {
    "run_dir",
    "init_from",  # read at step 0 only
    "vision_weights",  # likewise
    "tokenizer",  # where it lies; another one is refused by stream.json
    "data.validation",
    "data.num_workers",
    "data.index_dir",
    "data.exclude_steps",  # from the resume point on; the stream refuses others
    "data.exclude",
    "train.micro_batch_size",
    "train.ema_decay",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.async_checkpoints",
    "train.checkpoint_store",
    "train.validate_every",
    "train.validation_rows",
    "train.generation_samples",
    "train.generation_tokens",
    "train.spike_sigmas",
    "train.spike_window",
    "train.max_skipped_steps",
    "train.max_spikes",
    "train.max_rollbacks",
    "train.max_bad_samples",
    "train.dry_pass",
    "train.sinks",
    "train.sink_project",
    "train.hang_timeout_seconds",
    "train.time_limit",
    "train.attention_backend",
    "train.activation_checkpointing",
    "train.compile",
    "train.deterministic",
    "zero.stage",  # and the number of ranks: reshape.py
    "zero.config",
}
WARNED_ON_RESUME = {
    "train.num_steps": "the learning-rate schedule bends here",
    "train.peak_lr": "the learning rate changes here",
    "data.mixture": "the run goes on with another mixture",
    "data.unit": "the weights share out something else from here on",
    "seed": "dropout changes here, the order of each source from its next epoch on",
}


def parse_seconds(text: str | float) -> float:
    """Seconds of "3:55:00" and "1-12:00:00" (as SLURM writes them), "90m", "3h30m", or a number.

    YAML reads an unquoted 3:55:00 as the number of seconds by itself.
    """
    if isinstance(text, int | float):
        return float(text)
    if found := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text):
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    if not found or not text:
        raise ValueError(f"train.time_limit {text!r}: write 3:55:00, 90m or seconds")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a YAML config and applies `section.key=value` overrides (values are YAML).

    Raises:
        UserError: no such file, bad YAML, an unknown key, a value of the wrong type or range.
    """
    values = parse_yaml(read_text(path), str(path), "run_dir, tokenizer, data, model, train")
    for override in overrides or []:
        apply_override(values, override)
    return parse_config(values, str(path))


def read_text(path: str | Path) -> str:
    """A config file's text. UserError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not YAML: {error}") from None


def parse_yaml(text: str, where: str, keys: str) -> dict[str, Any]:
    """The keys of a YAML file, of which `keys` names the usual ones."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no keys; start with {keys}")
    return values


def parse_config(values: dict[str, Any], where: str) -> Config:
    """Checks names, types and contradictions. `where` is the file named in errors."""
    return parse(Config, values, where)


def parse(kind: type[Kind], values: dict[str, Any], where: str) -> Kind:
    """As `parse_config`, for any dataclass of dataclasses."""
    _check_keys(values, kind, "", where)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {key + ': ' if key else ''}{problem}") from None


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += changed_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(prefix + key)
    return changed


def apply_override(values: dict[str, Any], override: str) -> None:
    """Puts a `section.key=value` into the keys of a config."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r} is not of the form section.key=value")
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {section} is not a section")
    try:
        values[key] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not YAML") from None


def _check_keys(values: Any, owner: type, prefix: str, where: str) -> None:
    """Refuses unknown keys at any depth, naming the nearest known one."""
    if not isinstance(values, dict):
        return  # a wrong type: pydantic says so
    hints = typing.get_type_hints(owner)
    known = [f.name for f in dataclasses.fields(owner)]
    for key, value in values.items():
        if key not in known:
            hint = f"known: {', '.join(known)}"
            if near := difflib.get_close_matches(str(key), known, n=1, cutoff=0.5):
                hint = f"did you mean {prefix}{near[0]}?"
            if elsewhere := KNOWN_ELSEWHERE.get(prefix + str(key)):
                hint = f"use {elsewhere}"
            raise UserError(f"{where}: unknown key {prefix}{key}; {hint}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            _check_keys(value, kind, f"{prefix}{key}.", where)  # type: ignore[arg-type]
        elif typing.get_origin(kind) is list and isinstance(value, list):
            item = typing.get_args(kind)[0]
            for number, entry in enumerate(value if dataclasses.is_dataclass(item) else ()):
                _check_keys(entry, item, f"{prefix}{key}[{number}].", where)

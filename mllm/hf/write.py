"""Writes weights, settings, tokenizer and code as a folder that `transformers` loads by itself.

The modelling code is copied flat: the loader of `transformers` follows `from .x import` between the
files of one folder and nothing else.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, Kosmos2ForConditionalGeneration, PreTrainedModel

from mllm.errors import UserError
from mllm.files import write_json
from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.image_processing_mllm import MllmImageProcessor
from mllm.hf.kosmos2 import to_kosmos2_config, to_kosmos2_state
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.hf.processing_mllm import MllmProcessor
from mllm.hf.tokenization_mllm import MllmTokenizer
from mllm.images import Resize
from mllm.model.config import ModelConfig
from tokenizer.specials import BOS_ID, EOS_ID, PAD_ID, SPECIALS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MAX_SHARD_SIZE = "5GB"

# Which class each `Auto` class finds, by the settings file that says so.
AUTO_MAPS: dict[str, dict[str, Any]] = {
    "config.json": {
        "AutoConfig": "configuration_mllm.MllmConfig",
        "AutoModelForImageTextToText": "modeling_mllm.MllmForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_mllm.MllmForConditionalGeneration",
    },
    "processor_config.json": {
        "AutoProcessor": "processing_mllm.MllmProcessor",
        "AutoImageProcessor": "image_processing_mllm.MllmImageProcessor",
    },
    "tokenizer_config.json": {"AutoTokenizer": ["tokenization_mllm.MllmTokenizer", None]},
}
PROCESSOR_MODULES = (
    "mllm.hf.processing_mllm",
    "mllm.hf.image_processing_mllm",
    "mllm.hf.tokenization_mllm",
)
ENTRY_MODULES = ("mllm.hf.configuration_mllm", "mllm.hf.modeling_mllm", *PROCESSOR_MODULES)
OWN_IMPORT = re.compile(r"^( *)from ((?:mllm|tokenizer|corpora|evals)(?:\.\w+)*) import ", re.M)


def flat_modules(entries: tuple[str, ...] = ENTRY_MODULES) -> dict[str, str]:
    """File name to source of `entries` and of all modules of ours that they import.

    Each `from mllm.model.decoder import Decoder` has become `from .decoder import Decoder`.
    """
    files: dict[str, str] = {}
    origins: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        name = f"{module.rpartition('.')[2]}.py"
        if origins.setdefault(name, module) != module:
            raise AssertionError(f"{module} and {origins[name]} would both be exported as {name}")
        if name in files:
            continue
        source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        waiting += [match[1] for match in OWN_IMPORT.findall(source)]
        files[name] = OWN_IMPORT.sub(
            lambda match: f"{match[1]}from .{match[2].rpartition('.')[2]} import ", source
        )
    return files


def write_model(
    out_dir: str | Path,
    state: dict[str, torch.Tensor],
    model_config: ModelConfig,
    tokenizer_path: str | Path,
    resize: Resize,
    max_shard_size: str = MAX_SHARD_SIZE,
    template: str = "completion",
) -> int:
    """Writes everything that `transformers` needs into `out_dir`; gives back the parameter count.

    Args:
        state: `MultimodalModel.state_dict()`, with or without the tied head.
        tokenizer_path: the SentencePiece file.
        resize: `crop` or `squash`, as in training.
        max_shard_size: largest safetensors file, such as `500MB`.
        template: the form of chat messages, one of `processing_mllm.TEMPLATES`.

    Raises:
        UserError: the weights, the sizes and the tokenizer do not belong together, or the weights
            cannot be written.
    """
    tokenizer = _tokenizer(tokenizer_path, model_config)
    model = MllmForConditionalGeneration(MllmConfig.from_model_config(model_config))
    load_weights(model, {f"model.{name}": tensor for name, tensor in state.items()})
    _save(model, Path(out_dir), max_shard_size)
    _write_processor(
        Path(out_dir),
        MllmProcessor(
            MllmImageProcessor(model_config.vision.image_size, resize),
            tokenizer,
            num_latents=model_config.num_latents,
            template=template,
        ),
        ENTRY_MODULES,
    )
    return model.num_parameters()


def write_kosmos2(
    out_dir: str | Path,
    state: dict[str, torch.Tensor],
    model_config: ModelConfig,
    tokenizer_path: str | Path,
    resize: Resize,
    max_shard_size: str = MAX_SHARD_SIZE,
    template: str = "completion",
) -> int:
    """As `write_model`, for `Kosmos2ForConditionalGeneration`: its own class, no modelling code.

    Ids are this tokenizer's, not those of Kosmos-2's vocabulary. The processor is ours all the
    same, with its slot mask under Kosmos-2's name.
    """
    config = to_kosmos2_config(model_config, PAD_ID)
    tokenizer = _tokenizer(tokenizer_path, model_config)
    model = Kosmos2ForConditionalGeneration(config)
    load_weights(model, to_kosmos2_state(state))
    _save(model, Path(out_dir), max_shard_size)
    _write_processor(
        Path(out_dir),
        MllmProcessor(
            MllmImageProcessor(model_config.vision.image_size, resize),
            tokenizer,
            num_latents=model_config.num_latents,
            slot_mask_name="image_embeds_position_mask",
            template=template,
        ),
        PROCESSOR_MODULES,
    )
    return model.num_parameters()


def _tokenizer(path: str | Path, config: ModelConfig) -> MllmTokenizer:
    tokenizer = MllmTokenizer(str(path), model_max_length=config.seq_len)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} pieces but the model was trained with "
            f"vocab_size {config.vocab_size}; name the run's own tokenizer"
        )
    return tokenizer


def load_weights(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Fills `model` with every tensor of `state`; a tied head may be missing."""
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor for name, tensor in state.items() if name not in tied}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        raise UserError(
            f"the weights do not fit model_config.json: {len(missing)} tensors missing "
            f"{missing[:1]}, {len(unexpected)} unknown {unexpected[:1]}"
        )
    model.tie_weights()


def answer_settings() -> GenerationConfig:
    """How `generate` answers: greedily, in text. Of the specials only `</s>` may follow."""
    return GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        suppress_tokens=[i for i in SPECIALS.values() if i != EOS_ID],
    )


def _save(model: PreTrainedModel, out_dir: Path, max_shard_size: str) -> None:
    model.generation_config = answer_settings()
    save_weights(model, out_dir, max_shard_size)


def save_weights(model: PreTrainedModel, out_dir: Path, max_shard_size: str) -> None:
    """Weights and config.json.

    Raises:
        UserError: the disk would not take them.
    """
    try:
        model.save_pretrained(out_dir, max_shard_size=max_shard_size)
    except SafetensorError as error:  # a full disk: the library hides its OSError
        raise UserError(f"{out_dir}: {error}; choose another place or free space") from None


def _write_processor(out_dir: Path, processor: MllmProcessor, modules: tuple[str, ...]) -> None:
    """Processor and tokenizer, the code that they and the model need, and where to find it."""
    processor.save_pretrained(out_dir)
    files = flat_modules(modules)
    for name, auto_map in AUTO_MAPS.items():
        known = {key: value for key, value in auto_map.items() if _file_of(value) in files}
        if not known:
            continue
        settings = json.loads((out_dir / name).read_text(encoding="utf-8"))
        settings["auto_map"] = known
        if name == "processor_config.json":
            settings["image_processor"]["auto_map"] = {
                "AutoImageProcessor": auto_map["AutoImageProcessor"]
            }
        write_json(out_dir / name, settings)
    for name, source in files.items():
        (out_dir / name).write_text(source, encoding="utf-8")


def _file_of(reference: str | list[str | None]) -> str:
    """`modeling_mllm.py` of `modeling_mllm.MllmForConditionalGeneration`."""
    first = reference if isinstance(reference, str) else str(reference[0])
    return f"{first.partition('.')[0]}.py"

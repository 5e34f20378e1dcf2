"""Loads an export folder with the classes of this repository: data is read, no code is run."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mllm.errors import UserError
from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.image_processing_mllm import MllmImageProcessor
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.hf.processing_mllm import MllmProcessor
from mllm.hf.tokenization_mllm import MllmTokenizer


def load_export(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[MllmForConditionalGeneration, MllmProcessor]:
    """Model (in evaluation mode) and processor of an export.

    Raises:
        UserError: the folder is missing, is no export, or a file in it is cut short or damaged.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: no model here; write one with `mllm export RUN --out {path}`")
    try:
        settings, _ = MllmConfig.get_config_dict(path, local_files_only=True)
        if (found_type := settings.get("model_type")) != MllmConfig.model_type:
            raise UserError(
                f"{path}: a model of type {found_type}; export it with --format mllm, or bring it "
                f"in by `mllm import`"
            )
        config = MllmConfig.from_pretrained(path, local_files_only=True)
        loaded: Any = MllmForConditionalGeneration.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, found = loaded
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors missing, among them {missing[0]}")
        processor = load_processor(path)
        if processor.tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"{processor.tokenizer.vocab_size} pieces in the tokenizer, "
                f"{config.vocab_size} in the model"
            )
    # RuntimeError: tensors of another shape, or no SentencePiece model.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a whole export ({reason}); export it again") from error
    return model.to(device).eval(), processor


def load_processor(path: str | Path) -> MllmProcessor:
    """The processor of an export."""
    settings, _ = MllmProcessor.get_processor_dict(path, local_files_only=True)
    return MllmProcessor(
        MllmImageProcessor.from_pretrained(path, local_files_only=True),
        MllmTokenizer.from_pretrained(path, local_files_only=True),
        num_latents=settings["num_latents"],
        slot_mask_name=settings.get("slot_mask_name", "image_slot_mask"),
        template=settings.get("template", "completion"),
    )

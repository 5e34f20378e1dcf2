"""What a model in training says of a few held-out pictures, step after step: `generations.jsonl`.

    {"step": 200, "samples": [{"source": "pairs", "key": "emoji001", "image": 0,
        "prompt": "<image>", "completion": "A red cat.", "reference": "A grey dog."}, ...]}

The prompt is all of a document up to the first scored text behind a picture; that text is the
reference. `image` counts the document's pictures: the one that stands nearest before it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corpora.document import Document
from corpora.reader import Corpus
from mllm import dist
from mllm.config import Config
from mllm.errors import BadSample
from mllm.files import json_text
from mllm.images import normalise, read_pixels
from mllm.model.multimodal import MultimodalModel
from mllm.stream.encode import TokenSequence, encode
from mllm.stream.source import read
from mllm.stream.takedown import read_takedowns
from tokenizer.specials import BOI_ID, EOI_ID, EOS_ID, NUM_SPECIALS, PAD_ID, SLOT_ID
from tokenizer.tokenizer import Tokenizer

FILE_NAME = "generations.jsonl"
MAX_LOOKED_AT = 16  # documents, until one is found that can be completed

# Gives the samples of one line. All ranks call it together, with the model in evaluation mode.
Generate = Callable[[], list[dict[str, Any]]]


@dataclass(frozen=True)
class Completable:
    """The beginning of a held-out document, ready to be gone on with."""

    names: dict[str, Any]  # source, key, image, prompt and reference, as they are written
    token_ids: np.ndarray  # int32 (N,), from `<s>` on
    pixels: np.ndarray  # uint8 (I, 3, S, S), the pictures in it


def complete_captions(config: Config, model: MultimodalModel) -> Generate | None:
    """Greedy completions after pictures spread over each validation source; None without any.

    `transformers`' generate runs on the modules that train, by their hooks where ZeRO-3 gathers
    weights, so no weight is copied. Every rank completes every prompt, and none stops before
    `train.generation_tokens`: under ZeRO-3 all ranks must call each module equally often, and a
    GPU's last bit could end a text earlier on one rank than on another.
    """
    sets = [found for source in config.data.validation if (found := _find(config, source.name))]
    if not sets:
        return None
    # Only now: `transformers`' generation takes seconds to import.
    from mllm.hf.configuration_mllm import MllmConfig
    from mllm.hf.modeling_mllm import MllmForConditionalGeneration
    from mllm.hf.write import answer_settings

    # Any: mypy cannot tell that the class is one that generates.
    with torch.device("meta"):
        wrapper: Any = MllmForConditionalGeneration(MllmConfig.from_model_config(config.model))
    wrapper.model = model
    settings = answer_settings()
    settings.update(
        do_sample=False, eos_token_id=None, max_new_tokens=config.train.generation_tokens
    )
    tokenizer = Tokenizer(config.tokenizer)

    def generate() -> list[dict[str, Any]]:
        samples = []
        for prompts in sets:  # one source at a time bounds the memory
            inputs = _padded(prompts)
            # New shapes at every token: torch would compile each.
            with torch.compiler.set_stance("force_eager"):
                output = wrapper.generate(**inputs, generation_config=settings)
            new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
            samples += [
                {**prompt.names, "completion": _text(ids, tokenizer)}
                for prompt, ids in zip(prompts, new_ids, strict=True)
            ]
        return samples

    return generate


def append(run_dir: Path, step: int, samples: list[dict[str, Any]]) -> None:
    """Writes the line of one step on rank 0."""
    if samples and dist.rank() == 0:
        with open(run_dir / FILE_NAME, "a", encoding="utf-8") as file:
            file.write(json_text({"step": step, "samples": samples}) + "\n")


def _find(config: Config, source: str) -> list[Completable]:
    """The first usable document of each of `train.generation_samples` parts of a source."""
    path = next(entry.path for entry in config.data.validation if entry.name == source)
    corpus = Corpus(path, config.data.index_of(source, is_validation=True))
    usable = np.flatnonzero(corpus.num_images)
    usable = np.setdiff1d(usable, read_takedowns(config.data.exclude).samples(corpus))
    tokenizer = Tokenizer(config.tokenizer)

    def look_at(numbers: np.ndarray) -> Iterator[Completable]:
        for number in numbers[:MAX_LOOKED_AT].tolist():
            try:
                document = read(corpus, number)
                found = completable(document, source, config, tokenizer)
            except (BadSample, ValueError):  # counted where the loss reads it
                continue
            if found is not None:
                yield found

    num_parts = min(config.train.generation_samples, len(usable))
    parts = np.array_split(usable, num_parts) if num_parts else []
    return [found for part in parts for found in islice(look_at(part), 1)]


def completable(
    document: Document, source: str, config: Config, tokenizer: Tokenizer
) -> Completable | None:
    """The beginning of a document; None where no scored text follows a picture, or it is too long.

    Raises:
        ValueError: one of its pictures is broken.
    """
    sequence = encode(document, tokenizer, config.model.num_latents)
    split = _split(sequence, tokenizer)
    if split is None:
        return None
    start, reference = split
    token_ids = sequence.token_ids[:start]
    if len(token_ids) + config.train.generation_tokens > config.model.seq_len:
        return None
    between_pictures = np.split(token_ids, np.flatnonzero(token_ids == BOI_ID))
    num_images = len(between_pictures) - 1
    names = {
        "source": source,
        "key": document.key,
        "image": num_images - 1,
        "prompt": "<image>".join(map(tokenizer.decode, between_pictures)),
        "reference": reference,
    }
    size, resize = config.model.vision.image_size, config.data.resize
    pixels = [read_pixels(picture, size, resize) for picture in sequence.images[:num_images]]
    return Completable(names, token_ids, np.stack(pixels))


def _split(sequence: TokenSequence, tokenizer: Tokenizer) -> tuple[int, str] | None:
    """Where the first scored text behind a picture begins, and that text."""
    token_ids = sequence.token_ids
    is_behind = np.cumsum(token_ids == EOI_ID) > 0
    is_scored_text = is_behind & sequence.is_scored & (token_ids >= NUM_SPECIALS)
    edges = np.flatnonzero(np.diff(is_scored_text, prepend=False, append=False))
    for start, stop in edges.reshape(-1, 2).tolist():
        text = tokenizer.decode(token_ids[start:stop])
        if text.strip():
            return start, text
    return None


def _padded(prompts: list[Completable]) -> dict[str, torch.Tensor]:
    """What `generate` takes: rows of equal length, padded on the left."""
    width = max(len(prompt.token_ids) for prompt in prompts)
    input_ids = np.full((len(prompts), width), PAD_ID, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt.token_ids) :] = prompt.token_ids
        attention_mask[row, width - len(prompt.token_ids) :] = 1
    pixels = torch.from_numpy(np.concatenate([prompt.pixels for prompt in prompts]))
    device = dist.device()
    return {
        "input_ids": torch.from_numpy(input_ids).to(device),
        "attention_mask": torch.from_numpy(attention_mask).to(device),
        "image_slot_mask": torch.from_numpy(input_ids == SLOT_ID).to(device),
        "pixel_values": normalise(pixels.to(device)),
    }


def _text(token_ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of new ids up to `</s>`."""
    end = token_ids.index(EOS_ID) if EOS_ID in token_ids else len(token_ids)
    return tokenizer.decode(token_ids[:end])

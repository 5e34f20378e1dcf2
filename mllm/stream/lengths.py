"""Token lengths of a corpus: measured once per tokenizer, stored beside the corpus index.

    INDEX_DIR/tokens-VERSION[tTEMPLATE]-TOKENIZER-CORPUS/
        text_tokens.npy
        images_counts.npy, images_blocks.npy, image_offsets.npy
        lengths.json      totals, and the first dropped samples
        dropped.jsonl     every dropped sample

The folder's name holds both fingerprints, so a sidecar is either right or absent; of conversations
it holds the version of their template too, so that another one leaves all other lengths in place.
Six bytes a sample and four an image, memory-mapped: opening reads `lengths.json` alone.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpora.ragged import Ragged
from mllm.errors import UserError
from mllm.files import write_aside, write_json
from mllm.stream.array_file import ArrayFile, RaggedFile
from mllm.stream.encode import image_span

LENGTHS_VERSION = 2  # part of the folder's name: raise it when the files change
MAX_DROPPED_SHOWN = 1000


@dataclass(frozen=True)
class TokenLengths:
    """Token lengths of N samples with M images in all."""

    text_tokens: np.ndarray  # uint32 (N,); <s>, text and </s>; 0 for a dropped sample
    images: Ragged  # N runs: which of the image offsets are a sample's
    image_offsets: np.ndarray  # uint32 (M,); text tokens of its sample before each image
    total_text_tokens: int
    total_scored_tokens: int
    num_dropped: int
    dropped: dict[str, str]  # key: reason, of the first MAX_DROPPED_SHOWN dropped samples

    @property
    def num_samples(self) -> int:
        return len(self.text_tokens)

    @property
    def total_images(self) -> int:
        return self.images.total

    def length(self, sample: int, num_latents: int) -> int:
        """Tokens of the encoded sample, image slots included; 0 for a dropped one."""
        num_images = int(self.images.counts[sample])
        return int(self.text_tokens[sample]) + num_images * image_span(num_latents)

    def image_positions(self, sample: int, num_latents: int) -> np.ndarray:
        """int64 (I,), where each `<image>` of the encoded sample stands."""
        start, stop = self.images.span(sample)
        offsets = self.image_offsets[start:stop].astype(np.int64)
        return offsets + np.arange(stop - start) * image_span(num_latents)


@dataclass(frozen=True)
class LengthsPart:
    """Token lengths of n consecutive samples with m images."""

    text_tokens: np.ndarray  # uint32 (n,)
    num_images: np.ndarray  # uint16 (n,)
    image_offsets: np.ndarray  # uint32 (m,)
    scored_tokens: int  # of all n
    dropped: list[tuple[str, str]]  # (key, reason)


def write_lengths(parts: Iterable[LengthsPart], folder: Path) -> None:
    """Writes what `load_lengths` reads; holds one part at a time."""
    total_text_tokens = total_scored_tokens = num_dropped = 0
    shown: dict[str, str] = {}
    with (
        ArrayFile(folder / "text_tokens.npy", np.uint32) as text_tokens,
        RaggedFile(folder, "images", np.uint16) as images,
        ArrayFile(folder / "image_offsets.npy", np.uint32) as image_offsets,
        write_aside(folder / "dropped.jsonl") as dropped,
    ):
        for part in parts:
            text_tokens.append(part.text_tokens)
            images.append(part.num_images)
            image_offsets.append(part.image_offsets)
            total_text_tokens += int(part.text_tokens.sum(dtype=np.int64))
            total_scored_tokens += part.scored_tokens
            for key, reason in part.dropped:
                dropped.write(json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n")
                if len(shown) < MAX_DROPPED_SHOWN:
                    shown[key] = reason
            num_dropped += len(part.dropped)
    write_json(
        folder / "lengths.json",
        {
            "total_text_tokens": total_text_tokens,
            "total_scored_tokens": total_scored_tokens,
            "num_dropped": num_dropped,
            "dropped": shown,
        },
    )


def load_lengths(folder: Path) -> TokenLengths:
    """Memory-maps a sidecar. UserError when a file of it is missing or cut."""

    def load(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)

    try:
        return TokenLengths(
            text_tokens=load("text_tokens"),
            images=Ragged(load("images_counts"), load("images_blocks")),
            image_offsets=load("image_offsets"),
            **json.loads((folder / "lengths.json").read_bytes()),
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: damaged ({error}); delete it, to measure again") from None

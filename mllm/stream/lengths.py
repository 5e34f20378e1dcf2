"""Token lengths of a corpus: measured once per tokenizer, stored beside the corpus index.

    INDEX_DIR/tokens-TOKENIZER-CORPUS/{text_tokens,scored_tokens,image_starts,image_offsets}.npy
    INDEX_DIR/tokens-TOKENIZER-CORPUS/dropped.json

The folder's name holds both fingerprints, so a sidecar is either right or absent.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpora.reader import Corpus
from mllm.command import progress
from mllm.errors import BadSample, UserError
from mllm.files import fsync_dir, write_aside, write_json
from mllm.stream.encode import text_layout
from tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenLengths:
    """Token lengths of N samples with M images in all; memory-mapped."""

    text_tokens: np.ndarray  # int64 (N,); <s>, text and </s>; 0 for a dropped sample
    scored_tokens: np.ndarray  # int64 (N,)
    image_starts: np.ndarray  # int64 (N + 1,); sample i has images image_starts[i : i + 2]
    image_offsets: np.ndarray  # int64 (M,); text tokens of its sample before each image
    dropped: dict[str, str]  # key: reason, for samples whose content fits no document

    @property
    def num_images(self) -> np.ndarray:
        """int64 (N,)"""
        return np.diff(self.image_starts)


def token_lengths(corpus: Corpus, tokenizer: Tokenizer) -> TokenLengths:
    """Opens the sidecar of (corpus, tokenizer); measures and writes it first where it is absent."""
    folder = corpus.index_dir / f"tokens-{tokenizer.fingerprint}-{corpus.fingerprint}"
    if not folder.is_dir():
        _write(_measure(corpus, tokenizer), folder)
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in ("text_tokens", "scored_tokens", "image_starts", "image_offsets")
    }
    return TokenLengths(**arrays, dropped=json.loads((folder / "dropped.json").read_text()))


def _measure(corpus: Corpus, tokenizer: Tokenizer) -> TokenLengths:
    text_tokens = np.zeros(len(corpus), dtype=np.int64)
    scored_tokens = np.zeros(len(corpus), dtype=np.int64)
    image_starts = np.zeros(len(corpus) + 1, dtype=np.int64)
    image_offsets: list[int] = []
    dropped: dict[str, str] = {}
    for i in progress(range(len(corpus)), "token lengths"):
        try:
            layout = text_layout(corpus.document(i), tokenizer)
        except BadSample as error:
            dropped[corpus.key(i)] = str(error)
        else:
            text_tokens[i], scored_tokens[i] = layout.text_tokens, layout.scored_tokens
            image_offsets += layout.image_offsets
        image_starts[i + 1] = len(image_offsets)
    offsets = np.array(image_offsets, dtype=np.int64)
    return TokenLengths(text_tokens, scored_tokens, image_starts, offsets, dropped)


def _write(lengths: TokenLengths, folder: Path) -> None:
    """Writes the folder aside and renames it; of two ranks that race, the first wins."""
    aside = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: cannot write token lengths there ({error.strerror}); "
            "index the corpus into a writable folder (`mllm corpora index DIR --index-dir D`) "
            "and set data.index_dir"
        ) from error
    try:
        for name in ("text_tokens", "scored_tokens", "image_starts", "image_offsets"):
            with write_aside(aside / f"{name}.npy", "wb") as file:
                np.save(file, getattr(lengths, name))
        write_json(aside / "dropped.json", lengths.dropped)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        fsync_dir(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

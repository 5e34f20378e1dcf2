"""Measuring token lengths: the corpus in parts, so that a killed measurement goes on."""

from pathlib import Path

import numpy as np

from corpora.reader import Corpus
from mllm.command import progress
from mllm.errors import BadSample, UserError
from mllm.stream.build_once import build_once
from mllm.stream.encode import text_layout
from mllm.stream.lengths import (
    LENGTHS_VERSION,
    LengthsPart,
    TokenLengths,
    load_lengths,
    write_lengths,
)
from tokenizer.tokenizer import Tokenizer


def lengths_dir(corpus: Corpus, tokenizer: Tokenizer) -> Path:
    name = f"tokens-{LENGTHS_VERSION}-{tokenizer.fingerprint}-{corpus.fingerprint}"
    return corpus.index_dir / name


def open_lengths(corpus: Corpus, tokenizer: Tokenizer) -> TokenLengths:
    """Opens the sidecar of (corpus, tokenizer); measures first where it is absent."""
    folder = lengths_dir(corpus, tokenizer)
    try:
        build_once(
            folder,
            lambda aside: write_lengths([_measure(corpus, tokenizer, range(len(corpus)))], aside),
        )
    except OSError as error:
        raise UserError(
            f"{folder.parent}: cannot write token lengths there ({error.strerror}); "
            f"`mllm corpora index {corpus.corpus_dir} --index-dir D/SOURCE`, with D writable and "
            "SOURCE its name in data.mixture, and set data.index_dir=D"
        ) from None
    return load_lengths(folder)


def _measure(corpus: Corpus, tokenizer: Tokenizer, samples: range) -> LengthsPart:
    text_tokens = np.zeros(len(samples), dtype=np.uint32)
    num_images = np.zeros(len(samples), dtype=np.uint16)
    image_offsets: list[int] = []
    scored_tokens = 0
    dropped = []
    for place, sample in enumerate(progress(samples, "token lengths")):
        try:
            layout = text_layout(corpus.document(sample), tokenizer)
        except BadSample as error:
            dropped.append((corpus.key(sample), str(error)))
            continue
        text_tokens[place], num_images[place] = layout.text_tokens, len(layout.image_offsets)
        image_offsets += layout.image_offsets
        scored_tokens += layout.scored_tokens
    offsets = np.array(image_offsets, dtype=np.uint32)
    return LengthsPart(text_tokens, num_images, offsets, scored_tokens, dropped)

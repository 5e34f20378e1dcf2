"""Trains a SentencePiece model on text sampled from corpora, in bounded memory."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from corpora.document import Document, TextSegment
from corpora.reader import Corpus
from mllm.errors import BadSample, UserError
from mllm.files import write_aside
from tokenizer.specials import BOS_ID, EOS_ID, PAD_ID, SPECIALS, UNK_ID
from tokenizer.tokenizer import MODEL_NAME

# SentencePiece skips sentences above 4,192 bytes; a character takes at most 4.
MAX_SENTENCE_CHARACTERS = 1024
# Bytes, specials, the newline, and room for letters.
MIN_VOCAB_SIZE = 256 + len(SPECIALS) + 1 + 27


def sample_documents(corpora: Sequence[Corpus], sample_bytes: int) -> Iterator[Document]:
    """Documents drawn evenly from all corpora, about `sample_bytes` of text, in reading order.

    Their pictures are not read. Always the same ones: the draw is by a fixed seed. Samples with
    bad content are passed over; the stream counts them.
    """
    total_bytes = sum(int(corpus.text_bytes.sum()) for corpus in corpora)
    share = min(1.0, sample_bytes / max(1, total_bytes))
    for number, corpus in enumerate(corpora):
        draws = np.random.default_rng(number)
        for first in range(0, len(corpus), 65536):
            is_drawn = draws.random(min(65536, len(corpus) - first)) < share
            for offset in np.flatnonzero(is_drawn):
                try:
                    yield corpus.text_document(first + int(offset))
                except BadSample:
                    continue


def sentences(documents: Iterable[Document]) -> Iterator[str]:
    """The text of `documents` in pieces short enough for the trainer, cut at spaces."""
    cut = re.compile(rf".{{1,{MAX_SENTENCE_CHARACTERS}}}(?=\s|\Z)|.{{1,{MAX_SENTENCE_CHARACTERS}}}")
    for document in documents:
        for segment in document.segments:
            if isinstance(segment, TextSegment):
                for line in segment.text.replace("\0", "").split("\n"):
                    yield from cut.findall(line)


def train(texts: Iterator[str], vocab_size: int) -> bytes:
    """The model file of a unigram tokenizer: byte fallback, nothing normalised away.

    Args:
        texts: sentences; held in memory by the trainer, so the caller bounds them.
        vocab_size: all pieces: specials, bytes and text.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"--vocab-size {vocab_size}: at least {MIN_VOCAB_SIZE}, for all bytes")
    controls = [p for p, i in SPECIALS.items() if i not in (BOS_ID, PAD_ID, EOS_ID, UNK_ID)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts,
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            bos_id=BOS_ID,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            control_symbols=controls,
            user_defined_symbols=["\n"],
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=False,
            hard_vocab_limit=True,
            num_threads=16,  # the sums of EM depend on it: fixed, so the model does not vary
            minloglevel=2,
        )
    except RuntimeError as error:
        # Seen: "Vocabulary size too high (5000). Please set it to a value <= 1234."
        reason = re.sub(r"\s+", " ", str(error)).split("] ")[-1]
        raise UserError(f"--vocab-size {vocab_size}: {reason or 'too little text'}") from error
    return model.getvalue()


def train_tokenizer(
    corpus_dirs: Sequence[str | Path], out_dir: str | Path, vocab_size: int, sample_bytes: int
) -> Path:
    """Trains on the corpora and writes `out_dir/tokenizer.model`; gives back its path."""
    corpora = [Corpus(corpus_dir) for corpus_dir in corpus_dirs]
    model = train(sentences(sample_documents(corpora, sample_bytes)), vocab_size)
    model_path = Path(out_dir) / MODEL_NAME
    with write_aside(model_path, "wb") as file:
        file.write(model)
    return model_path

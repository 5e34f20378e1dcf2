"""One entry of the mixture: its corpus, lengths and pack plan."""

import time
from dataclasses import dataclass
from pathlib import Path

from corpora.document import Document
from corpora.reader import Corpus
from mllm.errors import UserError
from mllm.stream.encode import TokenSequence, encode
from mllm.stream.plan import open_plan
from tokenizer.tokenizer import Tokenizer

READ_ATTEMPTS = 3
READ_BACK_OFF_SECONDS = 0.5  # doubles after each failed read


@dataclass(frozen=True)
class Source:
    """One entry of the mixture."""

    name: str
    corpus_dir: str | Path
    weight: float  # share of tokens (or rows, by `unit`), relative to the other sources
    join_documents: float = 0.0  # share of this source's rows that are one context

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"data.mixture: {self.name} has weight {self.weight}; make it positive")
        if not 0 <= self.join_documents <= 1:
            raise UserError(
                f"data.mixture: {self.name} has join_documents {self.join_documents}; "
                "it is a share of rows, 0 to 1"
            )


class PlannedSource:
    """A source with its corpus open, its lengths known and its rows planned."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        seq_len: int,
        num_latents: int,
        index_dir: Path | None,
    ) -> None:
        self.name = source.name
        self.source = source
        self._tokenizer, self._num_latents = tokenizer, num_latents
        self.corpus = Corpus(source.corpus_dir, index_dir and index_dir / source.name)
        self.lengths, self.plan = open_plan(
            self.corpus,
            tokenizer,
            seq_len=seq_len,
            num_latents=num_latents,
            join_share=source.join_documents,
        )
        if self.plan.num_rows == 0:
            raise UserError(f"{source.corpus_dir}: no usable sample; run `mllm corpora lint` on it")
        # What the mixture's token shares count: slots and scored tokens.
        self.counted_tokens = (
            self.lengths.total_scored_tokens + num_latents * self.lengths.total_images
        )

    def length(self, sample: int) -> int:
        """Tokens of an encoded sample."""
        return self.lengths.length(sample, self._num_latents)

    def sequence(self, sample: int) -> TokenSequence:
        """Reads and encodes a sample. BadSample when its content spells no document."""
        sequence = encode(_read(self.corpus, sample), self._tokenizer, self._num_latents)
        if len(sequence.token_ids) != self.length(sample):
            raise UserError(
                f"{self.corpus.corpus_dir}: sample {self.corpus.key(sample)} has changed since "
                "it was indexed; run `mllm corpora index` on it"
            )
        return sequence


def _read(corpus: Corpus, sample: int) -> Document:
    """Reads a document; a failing disk or network is tried again, then stops the run."""
    for attempt in range(READ_ATTEMPTS):
        try:
            return corpus.document(sample)
        except OSError as error:
            if attempt + 1 == READ_ATTEMPTS:
                raise UserError(
                    f"{corpus.corpus_dir}: cannot read sample {corpus.key(sample)} after "
                    f"{READ_ATTEMPTS} attempts ({error}); mend the disk or the mount and resume"
                ) from error
            time.sleep(READ_BACK_OFF_SECONDS * 2**attempt)
    raise AssertionError("unreachable")

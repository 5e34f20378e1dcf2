"""One entry of the mixture: its corpus, lengths and pack plan."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpora.document import Document
from corpora.ragged import expect_random_access
from corpora.reader import Corpus
from corpora.transport import RemoteUnavailable
from mllm.errors import UserError
from mllm.stream.encode import TokenSequence, encode, image_span
from mllm.stream.measure import has_turns
from mllm.stream.plan import open_plan
from mllm.stream.takedown import Takedowns
from mllm.stream.template import TEMPLATE_VERSION
from tokenizer.tokenizer import Tokenizer

READ_ATTEMPTS = 3
READ_BACK_OFF_SECONDS = 0.5  # doubles after each failed read
CUT_DOCUMENTS_KEPT = 16  # a source


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
        score_image_start: bool,
        takedowns: Takedowns,
    ) -> None:
        self.name = source.name
        self.source = source
        self._tokenizer, self._num_latents = tokenizer, num_latents
        self._score_image_start = score_image_start
        self.corpus = Corpus(source.corpus_dir, index_dir and index_dir / source.name)
        # What its rows follow from: the samples, and how conversations are put into text.
        self.has_turns = has_turns(self.corpus)
        template = f"-t{TEMPLATE_VERSION}" if self.has_turns else ""
        self.fingerprint = f"{self.corpus.fingerprint}{template}"
        self.lengths, self.plan = open_plan(
            self.corpus,
            tokenizer,
            seq_len=seq_len,
            num_latents=num_latents,
            join_share=source.join_documents,
        )
        if self.plan.num_rows == 0:
            raise UserError(f"{source.corpus_dir}: no usable sample; run `mllm corpora lint` on it")
        self.excluded = takedowns.samples(self.corpus)  # int64, ascending: never read
        expect_random_access(self.corpus, self.lengths, self.plan)
        self._cut_documents: OrderedDict[int, TokenSequence] = OrderedDict()
        self._lock = threading.Lock()
        # What the mixture's token shares count: slots and scored tokens.
        self.counted_tokens = (
            self.lengths.total_scored_tokens + num_latents * self.lengths.total_images
        )

    def length(self, sample: int) -> int:
        """Tokens of an encoded sample."""
        return self.lengths.length(sample, self._num_latents)

    @property
    def image_span(self) -> int:
        """Positions of one image."""
        return image_span(self._num_latents)

    def is_excluded(self, sample: int) -> bool:
        """A takedown list has it."""
        if not len(self.excluded):
            return False
        place = int(np.searchsorted(self.excluded, sample))
        return place < len(self.excluded) and int(self.excluded[place]) == sample

    def sequence(self, sample: int, *, is_cut: bool = False) -> TokenSequence:
        """Reads and encodes a sample. BadSample when its content spells no document.

        Of documents that are cut (`is_cut`), the last few are kept: their other pieces stand in
        rows nearby.
        """
        if is_cut:
            with self._lock:
                if sample in self._cut_documents:
                    self._cut_documents.move_to_end(sample)
                    return self._cut_documents[sample]
        document = read(self.corpus, sample)
        sequence = encode(document, self._tokenizer, self._num_latents, self._score_image_start)
        if len(sequence.token_ids) != self.length(sample):
            raise UserError(
                f"{self.corpus.corpus_dir}: sample {self.corpus.key(sample)} has changed since "
                "it was indexed; run `mllm corpora index` on it"
            )
        if is_cut:
            with self._lock:
                self._cut_documents[sample] = sequence
                while len(self._cut_documents) > CUT_DOCUMENTS_KEPT:
                    self._cut_documents.popitem(last=False)
        return sequence


def read(corpus: Corpus, sample: int) -> Document:
    """Reads a document; a failing disk or network is tried again, then stops the run."""
    for attempt in range(READ_ATTEMPTS):
        try:
            return corpus.document(sample)
        except OSError as error:
            # What reads remote shards has made its own attempts.
            if attempt + 1 == READ_ATTEMPTS or isinstance(error, RemoteUnavailable):
                raise UserError(
                    f"{corpus.corpus_dir}: cannot read sample {corpus.key(sample)} after "
                    f"{attempt + 1} attempts ({error}); mend the disk or the mount and resume"
                ) from error
            time.sleep(READ_BACK_OFF_SECONDS * 2**attempt)
    raise AssertionError("unreachable")

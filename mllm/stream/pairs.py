"""Batches of image-text pairs for the vision stage: one picture and one caption a sample.

The same contract as `TokenStream`: a batch is a pure function of (state, step), and the rows of a
step are the same on any world size. Its loss compares every pair of the step with every other, so
there are no micro-steps.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from corpora.document import Document, ImageSegment, TextSegment
from corpora.reader import Corpus
from mllm.config import Config
from mllm.errors import BadSample, UserError
from mllm.stream.batch import RowInfo
from mllm.stream.mixture import integer_shares
from mllm.stream.order import Order
from mllm.stream.permute import hash_key
from mllm.stream.pixels import PixelCache
from mllm.stream.source import read
from mllm.stream.state import (
    Quarantine,
    Resumable,
    SegmentRecord,
    SourceRecord,
    StreamState,
    parse_windows,
)
from mllm.stream.takedown import read_takedowns
from tokenizer.specials import BOS_ID, EOS_ID, PAD_ID
from tokenizer.tokenizer import Tokenizer

SCAN = 1 << 16  # samples looked at together


@dataclass(frozen=True)
class PairBatch:
    """The pairs of one rank in one step. Letters: B pairs, T caption positions, S pixels a side."""

    pixels: torch.Tensor  # uint8 (B, 3, S, S)
    token_ids: torch.Tensor  # int64 (B, T); <s> caption </s>, right-padded
    lengths: torch.Tensor  # int64 (B,); positions that are not padding
    caption_ids: torch.Tensor  # int64 (B,); equal for pairs of one meta `concept`, or one text
    is_used: torch.Tensor  # bool (B,); False: masked, neither positive nor negative of any other
    source_ids: torch.Tensor  # int64 (B,)
    image_seeds: list[int]  # one per picture, from (seed, sample key, epoch)
    rows: list[RowInfo]
    bad_samples: list[dict[str, Any]] = field(default_factory=list)
    num_excluded: int = 0  # pairs that takedown lists leave out

    def to(self, device: torch.device | str) -> "PairBatch":
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


class PairStream(Resumable):
    """Pairs of a mixture of corpora, shuffled anew each epoch. Weights are shares of rows.

    `contrastive.group_size` samples that stand side by side in a corpus stay so in the stream: a
    corpus that lists two artists' pictures of one thing in turn gives each batch both.
    """

    def __init__(self, config: Config, state: StreamState | None = None):
        self._config = config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.global_batch_size = config.train.global_batch_size
        self.image_size = config.model.vision.image_size
        settings = config.contrastive
        self.text_len = settings.text_len
        self.caption_prefix, self.caption_end = settings.caption_prefix, settings.caption_end
        self._group_size = settings.group_size
        self.takedowns = read_takedowns(config.data.exclude)
        self.source_names = [source.name for source in config.data.mixture]
        if not self.source_names:
            raise UserError("data.mixture: needs at least one corpus of image-text pairs")
        self._corpora = [
            Corpus(source.path, config.data.index_of(source.name)) for source in config.data.mixture
        ]
        for source, corpus in zip(config.data.mixture, self._corpora, strict=True):
            if not has_pairs(corpus):
                raise UserError(f"{source.path}: the vision stage needs one picture in each sample")
        self.pictures = PixelCache(
            self.image_size,
            config.data.resize,
            num_pictures=sum(len(corpus) for corpus in self._corpora),
        )
        self._excluded = [set(self.takedowns.samples(c).tolist()) for c in self._corpora]
        fixed = {
            "tokenizer": self.tokenizer.fingerprint,
            "contrastive.text_len": self.text_len,
            "contrastive.caption_prefix": self.caption_prefix,
            "contrastive.caption_end": self.caption_end,
            "contrastive.group_size": self._group_size,
            "train.global_batch_size": self.global_batch_size,
        }
        num_excluded = sum(map(len, self._excluded))
        self._settle(
            state
            or StreamState(
                fixed=fixed,
                segments=(self._segment(config),),
                excluded_steps=parse_windows(config.data.exclude_steps),
                quarantine=(Quarantine(0, self.takedowns.hash, num_excluded),),
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._config, self.state)

    def _settle(self, state: StreamState) -> None:
        self.state = state
        self.order = Order(
            [record.segment for record in state.segments],
            {
                name: len(corpus)
                for name, corpus in zip(self.source_names, self._corpora, strict=True)
            },
            rows_per_step=self.global_batch_size,
            windows=state.excluded_steps,
            label="pairs",
            group_size=self._group_size,
        )

    def _segment(self, config: Config) -> SegmentRecord:
        mixture = config.data.mixture
        counts = integer_shares([Fraction(str(source.weight)) for source in mixture])
        records = (
            SourceRecord(source.name, source.path, corpus.fingerprint, str(source.weight), "", n)
            for source, corpus, n in zip(mixture, self._corpora, counts, strict=True)
        )
        return SegmentRecord(0, config.seed, "rows", tuple(records))

    def unmatched_takedowns(self) -> list[str]:
        """Entries of the takedown lists of which no source has a sample."""
        samples = [np.array(sorted(found), dtype=np.int64) for found in self._excluded]
        return self.takedowns.unmatched(list(zip(self._corpora, samples, strict=True)))

    def bytes_per_step(self, step: int, world_size: int) -> int:
        """Memory of one rank's pairs of a step, about."""
        pair = 3 * self.image_size**2 + 8 * self.text_len + 32
        return self.global_batch_size * pair // world_size

    def grad_accum_steps(self, world_size: int, micro_batch_size: int) -> int:
        """Always 1. UserError otherwise: negatives are the step's pairs, all at once."""
        if world_size * micro_batch_size != self.global_batch_size:
            raise UserError(
                f"stage vision compares all pairs of a step: train.global_batch_size "
                f"{self.global_batch_size} must be {world_size} ranks x train.micro_batch_size "
                f"{micro_batch_size} = {world_size * micro_batch_size}"
            )
        return 1

    def samples(self, step: int) -> list[tuple[int, int, int, int]]:
        """(source, sample, epoch, seed) of each row of a step, in constant time for any step."""
        order = self.order.rows(step)
        sizes = np.array([len(corpus) for corpus in self._corpora])
        # A short last group is filled up with the corpus's first samples.
        chosen = order.rows % sizes[order.source_ids]
        columns = (order.source_ids.tolist(), chosen.tolist(), order.epochs.tolist(), order.seeds)
        return list(zip(*columns, strict=True))

    def row_infos(self, step: int, *, world_size: int, micro_batch_size: int) -> list[RowInfo]:
        """Every pair of a step over all ranks, in global order."""
        self.grad_accum_steps(world_size, micro_batch_size)
        samples, size = self.samples(step), micro_batch_size
        return [
            row
            for rank in range(world_size)
            for row in self._row_infos(
                step, rank, rank * size, samples[rank * size : (rank + 1) * size]
            )
        ]

    def _row_infos(
        self, step: int, rank: int, first: int, samples: list[tuple[int, int, int, int]]
    ) -> list[RowInfo]:
        return [
            RowInfo(
                step=step,
                rank=rank,
                micro_step=0,
                row=first + place,
                source=self.source_names[source_id],
                samples=[self._corpora[source_id].key(sample)],
                tokens=0,
                scored_tokens=0,
                images=1,
            )
            for place, (source_id, sample, _, _) in enumerate(samples)
        ]

    def batch(
        self, step: int, micro_step: int = 0, *, rank: int, world_size: int, micro_batch_size: int
    ) -> PairBatch:
        """This rank's pairs. What cannot be read or is left out becomes a blank, unused pair."""
        self.grad_accum_steps(world_size, micro_batch_size)
        first = rank * micro_batch_size
        samples = self.samples(step)[first : first + micro_batch_size]
        pixels = np.zeros((len(samples), 3, self.image_size, self.image_size), np.uint8)
        is_used = np.zeros(len(samples), dtype=bool)
        texts, caption_ids, bad, num_excluded = [], [], [], 0
        keys = [self._corpora[source_id].key(sample) for source_id, sample, _, _ in samples]
        for place, (source_id, sample, _, _) in enumerate(samples):
            corpus = self._corpora[source_id]
            document, caption = Document(keys[place], (), {}), ""
            if sample in self._excluded[source_id]:
                num_excluded += 1
            else:
                try:
                    document = read(corpus, sample)
                    picture, text = pair_of(document)
                    pixels[place] = self.pictures.decode(picture)
                    caption, is_used[place] = text, True
                except (BadSample, ValueError) as error:
                    bad.append(
                        {
                            "shard": corpus.shard_of(sample),
                            "key": keys[place],
                            "reason": str(error),
                            "step": step,
                        }
                    )
            texts.append(caption)
            caption_ids.append(hash_key("thing", document.meta.get("concept", caption)) >> 1)
        token_ids, lengths = self.encode(texts)
        return PairBatch(
            pixels=torch.from_numpy(pixels),
            token_ids=token_ids,
            lengths=lengths,
            caption_ids=torch.tensor(caption_ids),
            is_used=torch.from_numpy(is_used),
            source_ids=torch.tensor([source_id for source_id, _, _, _ in samples]),
            image_seeds=[
                hash_key("image", seed, key, epoch, 0) >> 1
                for key, (_, _, epoch, seed) in zip(keys, samples, strict=True)
            ],
            rows=self._row_infos(step, rank, first, samples),
            bad_samples=bad,
            num_excluded=num_excluded,
        )

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions to int64 (B, T) and their lengths (B,); longer ones lose their tail."""
        texts = [self.core(text) for text in texts]
        token_ids = torch.full((len(texts), self.text_len), PAD_ID)
        lengths = torch.empty(len(texts), dtype=torch.int64)
        for i, ids in enumerate(self.tokenizer.encode_batch(texts)):
            ids = [BOS_ID, *ids[: self.text_len - 2], EOS_ID]
            token_ids[i, : len(ids)] = torch.tensor(ids)
            lengths[i] = len(ids)
        return token_ids, lengths

    def core(self, caption: str) -> str:
        """What is read of a caption: neither the prefix nor what follows the first end."""
        caption = caption.removeprefix(self.caption_prefix)
        places = [caption.find(end) for end in self.caption_end if end in caption]
        return caption[: min(places)] if places else caption


def has_pairs(corpus: Corpus) -> bool:
    """Whether any sample has one picture; looks at them in blocks, as far as it must."""
    counts = corpus.num_images
    return any((counts[i : i + SCAN] == 1).any() for i in range(0, len(counts), SCAN))


def pair_of(document: Document) -> tuple[bytes, str]:
    """The picture and the text of an image-text pair."""
    pictures = [s.data for s in document.segments if isinstance(s, ImageSegment)]
    texts = [s.text for s in document.segments if isinstance(s, TextSegment)]
    if len(pictures) != 1 or not texts:
        raise BadSample(f"{len(pictures)} pictures and {len(texts)} texts, not one pair")
    return pictures[0], " ".join(texts)

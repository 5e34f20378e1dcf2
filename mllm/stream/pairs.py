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
from mllm.files import fingerprint
from mllm.stream.batch import RowInfo
from mllm.stream.mixture import Mixture
from mllm.stream.permute import epoch_row, hash_key, mix
from mllm.stream.pixels import PixelCache
from tokenizer.specials import BOS_ID, EOS_ID, PAD_ID
from tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class PairBatch:
    """The pairs of one rank in one step. Letters: B pairs, T caption positions, S pixels a side."""

    pixels: torch.Tensor  # uint8 (B, 3, S, S)
    token_ids: torch.Tensor  # int64 (B, T); <s> caption </s>, right-padded
    lengths: torch.Tensor  # int64 (B,); positions that are not padding
    caption_ids: torch.Tensor  # int64 (B,); equal for pairs of one meta `concept`, or one text
    source_ids: torch.Tensor  # int64 (B,)
    image_seeds: list[int]  # one per picture, from (seed, sample key, epoch)
    rows: list[RowInfo]
    bad_samples: list[dict[str, Any]] = field(default_factory=list)

    def to(self, device: torch.device | str) -> "PairBatch":
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


class PairStream:
    """Pairs of a mixture of corpora, shuffled anew each epoch. Weights are shares of rows.

    `contrastive.group_size` samples that stand side by side in a corpus stay so in the stream: a
    corpus that lists two artists' pictures of one thing in turn gives each batch both.
    """

    def __init__(self, config: Config):
        self._config = config
        self.tokenizer = Tokenizer(config.tokenizer)
        self.seed = config.seed
        self.global_batch_size = config.train.global_batch_size
        self.image_size = config.model.vision.image_size
        self.pictures = PixelCache(self.image_size, config.data.resize)
        self.text_len = config.contrastive.text_len
        self.caption_prefix = config.contrastive.caption_prefix
        self.caption_end = config.contrastive.caption_end
        self.source_names = [source.name for source in config.data.mixture]
        if not self.source_names:
            raise UserError("data.mixture: needs at least one corpus of image-text pairs")
        self._corpora = [
            Corpus(source.path, config.data.index_dir and f"{config.data.index_dir}/{source.name}")
            for source in config.data.mixture
        ]
        for source, corpus in zip(config.data.mixture, self._corpora, strict=True):
            if not (np.asarray(corpus.num_images) == 1).all():
                raise UserError(f"{source.path}: the vision stage needs one picture in each sample")
        self._weights = [source.weight for source in config.data.mixture]
        self.mixture = Mixture([Fraction(str(weight)) for weight in self._weights])
        keys = [hash_key("pairs", self.seed, name) for name in self.source_names]
        self._keys = np.array(keys, dtype=np.uint64)
        self._num_samples = np.array([len(corpus) for corpus in self._corpora], dtype=np.int64)
        self._group_size = config.contrastive.group_size

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._config,)

    def bytes_per_step(self, step: int, world_size: int) -> int:
        """Memory of one rank's pairs of a step, about."""
        pair = 3 * self.image_size**2 + 8 * self.text_len + 24
        return self.global_batch_size * pair // world_size

    @property
    def fingerprint(self) -> str:
        return self.state["fingerprint"]

    @property
    def state(self) -> dict[str, Any]:
        """What `stream.json` holds."""
        sources = [
            [name, corpus.fingerprint, str(weight)]
            for name, corpus, weight in zip(
                self.source_names, self._corpora, self._weights, strict=True
            )
        ]
        identity = {
            "sources": sources,
            "tokenizer": self.tokenizer.fingerprint,
            "text": [self.text_len, self.caption_prefix, self.caption_end],
            "global_batch_size": self.global_batch_size,
            "group_size": self._group_size,
        }
        return {
            "fingerprint": fingerprint(identity),
            "segments": [{"first_step": 0, "mixture": fingerprint(sources), "seed": self.seed}],
        }

    def grad_accum_steps(self, world_size: int, micro_batch_size: int) -> int:
        """Always 1. UserError otherwise: negatives are the step's pairs, all at once."""
        if world_size * micro_batch_size != self.global_batch_size:
            raise UserError(
                f"stage vision compares all pairs of a step: train.global_batch_size "
                f"{self.global_batch_size} must be {world_size} ranks x train.micro_batch_size "
                f"{micro_batch_size} = {world_size * micro_batch_size}"
            )
        return 1

    def samples(self, step: int) -> list[tuple[int, int, int]]:
        """(source, sample, epoch) of each row of a step, in constant time for any step."""
        size = self.global_batch_size
        source_ids, numbers = self.mixture.rows(step * size, size)
        num_samples = self._num_samples[source_ids]
        groups, offsets = np.divmod(numbers, self._group_size)
        num_groups = -(-num_samples // self._group_size)
        epochs, positions = np.divmod(groups, num_groups)
        keys = mix(self._keys[source_ids] ^ mix(epochs.astype(np.uint64)))
        # A short last group is filled up with the corpus's first samples.
        chosen = epoch_row(positions, num_groups, keys) * self._group_size + offsets
        chosen %= num_samples
        return list(zip(source_ids.tolist(), chosen.tolist(), epochs.tolist(), strict=True))

    def batch(
        self, step: int, micro_step: int = 0, *, rank: int, world_size: int, micro_batch_size: int
    ) -> PairBatch:
        """This rank's pairs. A picture or caption that cannot be read becomes a blank pair."""
        self.grad_accum_steps(world_size, micro_batch_size)
        first = rank * micro_batch_size
        pixels, texts, caption_ids, seeds, rows, bad = [], [], [], [], [], []
        samples = self.samples(step)[first : first + micro_batch_size]
        for row, (source_id, sample, epoch) in enumerate(samples, start=first):
            corpus = self._corpora[source_id]
            key = corpus.key(sample)
            try:
                document = corpus.document(sample)
                picture, caption = pair_of(document)
                pixels.append(self.pictures.decode(picture))
            except (BadSample, ValueError) as error:
                document, caption = Document(key, (), {}), ""
                pixels.append(np.zeros((3, self.image_size, self.image_size), np.uint8))
                bad.append(
                    {
                        "shard": corpus.shard_of(sample),
                        "key": key,
                        "reason": str(error),
                        "step": step,
                    }
                )
            texts.append(caption)
            caption_ids.append(hash_key("thing", document.meta.get("concept", caption)) >> 1)
            seeds.append(hash_key("image", self.seed, key, epoch, 0) >> 1)
            rows.append(
                RowInfo(
                    step=step,
                    rank=rank,
                    micro_step=micro_step,
                    row=row,
                    source=self.source_names[source_id],
                    samples=[key],
                    tokens=0,
                    scored_tokens=0,
                    images=1,
                )
            )
        token_ids, lengths = self.encode(texts)
        return PairBatch(
            pixels=torch.from_numpy(np.stack(pixels)),
            token_ids=token_ids,
            lengths=lengths,
            caption_ids=torch.tensor(caption_ids),
            source_ids=torch.tensor([source_id for source_id, _, _ in samples]),
            image_seeds=seeds,
            rows=rows,
            bad_samples=bad,
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


def pair_of(document: Document) -> tuple[bytes, str]:
    """The picture and the text of an image-text pair."""
    pictures = [s.data for s in document.segments if isinstance(s, ImageSegment)]
    texts = [s.text for s in document.segments if isinstance(s, TextSegment)]
    if len(pictures) != 1 or not texts:
        raise BadSample(f"{len(pictures)} pictures and {len(texts)} texts, not one pair")
    return pictures[0], " ".join(texts)

"""Planned rows to a Batch: reads, encodes and places pieces, and masks what cannot be used."""

from typing import Any

import numpy as np
import torch

from mllm.errors import BadSample
from mllm.stream.batch import Batch, RowInfo
from mllm.stream.permute import hash_key
from mllm.stream.pixels import PixelCache
from mllm.stream.source import PlannedSource
from tokenizer.specials import BOI_ID, BOS_ID, EOS_ID, PAD_ID, SLOT_ID


class BatchDraft:
    """A batch in the making, on numpy arrays of (B, T)."""

    def __init__(
        self,
        num_rows: int,
        *,
        step: int,
        seq_len: int,
        pictures: PixelCache,
    ) -> None:
        self._step = step
        self._pictures = pictures
        shape = (num_rows, seq_len)
        self.token_ids = np.full(shape, PAD_ID, dtype=np.int64)
        self.is_scored = np.zeros(shape, dtype=bool)
        self.positions = np.zeros(shape, dtype=np.int64)
        self.document_ids = np.full(shape, -1, dtype=np.int64)
        self.slot_mask = np.zeros(shape, dtype=bool)
        self._pixels: list[np.ndarray] = []
        self._image_seeds: list[int] = []
        self._bad_samples: list[dict[str, Any]] = []
        self._num_excluded = 0

    def fill_row(
        self, b: int, source: PlannedSource, plan_row: int, epoch: int, seed: int
    ) -> list[str]:
        """Writes the pieces of a planned row into row `b`; gives back their sample keys.

        Pictures get their seeds from (`seed`, sample key, `epoch`, image).
        """
        packed = source.plan
        is_joined = bool(packed.is_joined[plan_row])
        pieces = packed.pieces(plan_row)
        keys = []
        end = 0
        if is_joined:
            self.token_ids[b, 0] = BOS_ID
            end = 1
        for number, (sample, start, stop) in enumerate(pieces):
            skipped = int(is_joined and start == 0)  # the row's own <s> stands for the document's
            begin, end = end, end + stop - start - skipped
            key = source.corpus.key(sample)
            keys.append(key)
            if source.is_excluded(sample):
                self._num_excluded += 1  # as a sample that cannot be read, but without a look
            else:
                place = slice(begin, end)
                self._fill_piece(b, place, source, sample, start + skipped, (seed, key, epoch))
            if start:
                self.is_scored[b, begin] = False  # what it follows from is not in this row
            if not is_joined:
                self.positions[b, begin:end] = np.arange(end - begin)
                self.document_ids[b, begin:end] = number
            elif stop < source.length(sample) and number + 1 < len(pieces):
                self.token_ids[b, end] = EOS_ID
                end += 1
        if is_joined:
            self.positions[b, :end] = np.arange(end)
            self.document_ids[b, :end] = 0
        return keys

    def _fill_piece(
        self,
        b: int,
        place: slice,
        source: PlannedSource,
        sample: int,
        start: int,
        identity: tuple[int, str, int],
    ) -> None:
        """Writes the tokens of a document from `start` on to `place` of row `b`, and its pictures.

        Args:
            identity: seed, key and epoch, from which its pictures' seeds are.
        """
        stop = start + place.stop - place.start
        is_cut = start > 1 or stop < source.length(sample)
        try:
            sequence = source.sequence(sample, is_cut=is_cut)
        except BadSample as error:
            self._note_bad(source, sample, str(error))
            return  # padding ids, unscored, at the planned positions
        tokens = sequence.token_ids[start:stop]
        first_image = int((sequence.token_ids[:start] == BOI_ID).sum())
        num_images = int((tokens == BOI_ID).sum())
        is_good = True
        for number in range(first_image, first_image + num_images):
            try:
                pixels = self._pictures.decode(sequence.images[number])
            except ValueError as error:
                is_good = False
                self._note_bad(source, sample, f"image {number}: {error}")
                pixels = np.zeros_like(self._dummy)
            self._pixels.append(pixels)
            self._image_seeds.append(hash_key("image", *identity, number) >> 1)  # fits int64
        self.token_ids[b, place] = tokens
        self.slot_mask[b, place] = tokens == SLOT_ID
        self.is_scored[b, place] = sequence.is_scored[start:stop] & is_good

    @property
    def _dummy(self) -> np.ndarray:
        """A zero image, uint8 (3, S, S)."""
        return np.zeros((3, self._pictures.size, self._pictures.size), dtype=np.uint8)

    def _note_bad(self, source: PlannedSource, sample: int, reason: str) -> None:
        self._bad_samples.append(
            {
                "shard": source.corpus.shard_of(sample),
                "key": source.corpus.key(sample),
                "reason": reason,
                "step": self._step,
            }
        )

    def loss_mask(self) -> np.ndarray:
        """bool (B, T): the next position belongs to the same document and is a scored target."""
        mask = np.zeros_like(self.is_scored)
        is_same = self.document_ids[:, 1:] == self.document_ids[:, :-1]
        mask[:, :-1] = self.is_scored[:, 1:] & is_same
        return mask

    def finish(
        self, loss_mask: np.ndarray, *, source_ids: np.ndarray, rows: list[RowInfo]
    ) -> Batch:
        target_ids = np.full_like(self.token_ids, PAD_ID)
        is_same = self.document_ids[:, 1:] == self.document_ids[:, :-1]
        target_ids[:, :-1] = np.where(is_same, self.token_ids[:, 1:], PAD_ID)
        return Batch(
            token_ids=torch.from_numpy(self.token_ids),
            target_ids=torch.from_numpy(target_ids),
            loss_mask=torch.from_numpy(loss_mask),
            positions=torch.from_numpy(self.positions),
            document_ids=torch.from_numpy(self.document_ids),
            slot_mask=torch.from_numpy(self.slot_mask),
            pixels=torch.from_numpy(np.stack(self._pixels or [self._dummy])),
            num_images=len(self._pixels),
            source_ids=torch.from_numpy(source_ids),
            image_seeds=self._image_seeds,
            rows=rows,
            bad_samples=self._bad_samples,
            num_excluded=self._num_excluded,
        )

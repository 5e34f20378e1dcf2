"""Planned rows to a Batch: reads, encodes and places pieces, and masks what cannot be used."""

from typing import Any, NamedTuple

import numpy as np
import torch

from mllm.errors import BadSample
from mllm.stream.batch import Batch, RowInfo
from mllm.stream.permute import hash_key
from mllm.stream.pixels import PixelCache
from mllm.stream.source import PlannedSource
from tokenizer.specials import BOI_ID, BOS_ID, EOS_ID, PAD_ID, SLOT_ID


class FilledRow(NamedTuple):
    """What was put into one row."""

    keys: list[str]  # of its samples, in order
    num_tokens: int  # positions that are not padding
    num_images: int


class _Piece(NamedTuple):
    """Tokens `start .. stop - 1` of a document."""

    sample: int
    start: int
    stop: int
    is_cut: bool  # other tokens of it stand in another row


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
        self._places = np.arange(seq_len)
        self._pixels: list[np.ndarray] = []
        self._image_seeds: list[int] = []
        self._bad_samples: list[dict[str, Any]] = []
        self._num_excluded = 0

    def fill_row(
        self, b: int, source: PlannedSource, plan_row: int, epoch: int, seed: int
    ) -> FilledRow:
        """Writes the pieces of a planned row into row `b`.

        Pictures get their seeds from (`seed`, sample key, `epoch`, image).
        """
        is_joined = bool(source.plan.is_joined[plan_row])
        pieces = source.plan.pieces(plan_row)
        keys = []
        first_picture = len(self._pixels)
        spans = source.plan.spans(plan_row)
        if is_joined:
            self.token_ids[b, 0] = BOS_ID
        for number, (sample, start, stop) in enumerate(pieces):
            skipped = int(is_joined and start == 0)  # the row's own <s> stands for the document's
            begin, end = spans[number]
            length = source.length(sample)
            if source.is_excluded(sample):
                self._num_excluded += 1  # as a sample that cannot be read, but without a look
                keys.append(source.corpus.key(sample))
            else:
                piece = _Piece(sample, start + skipped, stop, is_cut=stop - start < length)
                keys.append(self._fill_piece(b, begin, source, piece, epoch, seed))
            if start:
                self.is_scored[b, begin] = False  # what it follows from is not in this row
            if not is_joined:
                self.positions[b, begin:end] = self._places[: end - begin]
                self.document_ids[b, begin:end] = number
            elif stop < length and number + 1 < len(pieces):
                self.token_ids[b, end] = EOS_ID
        end = spans[-1][1]
        if is_joined:
            self.positions[b, :end] = self._places[:end]
            self.document_ids[b, :end] = 0
        return FilledRow(keys, end, len(self._pixels) - first_picture)

    def _fill_piece(
        self, b: int, begin: int, source: PlannedSource, piece: _Piece, epoch: int, seed: int
    ) -> str:
        """Writes the tokens of a piece from `begin` on, and its pictures; gives its sample key."""
        try:
            sequence = source.sequence(piece.sample, is_cut=piece.is_cut)
        except BadSample as error:
            self._note_bad(source, piece.sample, str(error))
            # Padding ids, unscored, at the planned positions.
            return source.corpus.key(piece.sample)
        tokens, is_scored = sequence.token_ids, sequence.is_scored
        pictures = range(len(sequence.images))
        if piece.is_cut:
            tokens, is_scored = (
                tokens[piece.start : piece.stop],
                is_scored[piece.start : piece.stop],
            )
            first = int(np.count_nonzero(sequence.token_ids[: piece.start] == BOI_ID))
            pictures = range(first, first + int(np.count_nonzero(tokens == BOI_ID)))
        elif piece.start:
            tokens, is_scored = tokens[piece.start :], is_scored[piece.start :]
        place = slice(begin, begin + len(tokens))
        self.token_ids[b, place] = tokens
        self.is_scored[b, place] = is_scored
        for number in pictures:
            try:
                pixels = self._pictures.decode(sequence.images[number])
            except ValueError as error:
                self.is_scored[b, place] = False
                self._note_bad(source, piece.sample, f"image {number}: {error}")
                pixels = self._dummy
            self._pixels.append(pixels)
            image_seed = hash_key("image", seed, sequence.key, epoch, number)
            self._image_seeds.append(image_seed >> 1)  # fits int64
        return sequence.key

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
        self,
        loss_mask: np.ndarray,
        *,
        source_ids: np.ndarray,
        row_seeds: list[int],
        rows: list[RowInfo],
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
            slot_mask=torch.from_numpy(self.token_ids == SLOT_ID),
            pixels=torch.from_numpy(np.stack(self._pixels or [self._dummy])),
            num_images=len(self._pixels),
            source_ids=torch.from_numpy(source_ids),
            row_seeds=torch.tensor(row_seeds, dtype=torch.int64),
            image_seeds=self._image_seeds,
            rows=rows,
            bad_samples=self._bad_samples,
            num_excluded=self._num_excluded,
        )

"""Text to ids and back. Text can never produce a special token."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from mllm.errors import UserError
from mllm.files import sha256_file
from tokenizer.specials import NUM_SPECIALS, SPECIALS

MODEL_NAME = "tokenizer.model"
SPACE_MARK = "\u2581"  # what SentencePiece writes for a space in a piece


class Tokenizer:
    """A SentencePiece model whose first ids are `tokenizer.specials.SPECIALS`.

    Args:
        path: a folder that holds `tokenizer.model`, or such a file.

    Raises:
        UserError: the file is missing, unreadable, or has other special ids.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.model_path = path / MODEL_NAME if path.is_dir() else path
        if not self.model_path.is_file():
            raise UserError(
                f"{self.model_path}: no such tokenizer; make one with `mllm tokenizer train`"
            )
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(self.model_path))
        except RuntimeError as error:
            raise UserError(
                f"{self.model_path}: not a SentencePiece model; train it again"
            ) from error
        for piece, special_id in SPECIALS.items():
            if self._processor.piece_to_id(piece) != special_id:
                raise UserError(
                    f"{self.model_path}: {piece} is not id {special_id}; "
                    "train the tokenizer with `mllm tokenizer train`"
                )
        self.vocab_size: int = self._processor.vocab_size()
        self.fingerprint: str = sha256_file(self.model_path)[:16]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, all of them `>= NUM_SPECIALS`; no `<s>`, no `</s>`.

        `decode` gives the text back, with one exception: U+2581, SentencePiece's own mark for a
        space, comes back as a space.
        """
        return self._processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self._processor.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens are dropped."""
        return self._processor.decode([int(i) for i in ids if i >= NUM_SPECIALS])

    def id_to_piece(self, token_id: int) -> str:
        """The piece of one id, as SentencePiece spells it."""
        return self._processor.id_to_piece(int(token_id))

    def is_byte(self, token_id: int) -> bool:
        """Whether this id stands for one byte of a character without a piece of its own."""
        return self._processor.is_byte(int(token_id))

    @cached_property
    def text_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id adds to a text: int64 (V,), 0 for special tokens.

        Summed over a text's ids they are its bytes, as far as `decode` gives it back. Where a
        model puts a space before every text (Kosmos-2's does), that space is counted.
        """
        return np.array([self._bytes_of(token_id) for token_id in range(self.vocab_size)])

    def _bytes_of(self, token_id: int) -> int:
        if token_id < NUM_SPECIALS or self._processor.is_control(token_id):
            return 0
        if self._processor.is_byte(token_id):
            return 1
        return len(self._processor.id_to_piece(token_id).replace(SPACE_MARK, " ").encode())

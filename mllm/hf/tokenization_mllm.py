"""The trainer's SentencePiece tokenizer as `transformers` knows tokenizers: same text, same ids.

Text never becomes a special token: `<image>` or `</s>` in a string is encoded as the characters it
is made of. Special tokens are put in as ids: `<s>` by the tokenizer, all others by the processor.
"""

import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import AddedToken, PreTrainedTokenizer

from tokenizer.specials import BOS_ID, EOS_ID, NUM_SPECIALS, PAD_ID, SPECIALS, UNK_ID

VOCAB_FILE = "tokenizer.model"


class MllmTokenizer(PreTrainedTokenizer):
    """SentencePiece pieces under `PreTrainedTokenizer`; ids are the model file's own.

    Args:
        vocab_file: the SentencePiece model; its first ids are those of the table of specials.
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE}  # noqa: RUF012 (an attribute of the base class)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **settings: Any) -> None:
        self.vocab_file = vocab_file
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        names = {i: name for name, i in SPECIALS.items()}
        # Read back from a saved folder these arrive as settings; the table is the truth.
        for key in ("bos_token", "eos_token", "pad_token", "unk_token", "extra_special_tokens"):
            settings.pop(key, None)
        settings["added_tokens_decoder"] = {
            i: AddedToken(name, normalized=False, special=True) for i, name in names.items()
        }
        settings.setdefault("padding_side", "left")
        settings.setdefault("clean_up_tokenization_spaces", False)
        named_ids = (BOS_ID, EOS_ID, PAD_ID, UNK_ID)
        settings["split_special_tokens"] = True
        super().__init__(
            bos_token=names[BOS_ID],
            eos_token=names[EOS_ID],
            pad_token=names[PAD_ID],
            unk_token=names[UNK_ID],
            extra_special_tokens=[name for i, name in names.items() if i not in named_ids],
            special_tokens_pattern="bos",
            token_type_ids_pattern="all_zeros",
            **settings,
        )

    @property
    def vocab_size(self) -> int:
        return self.pieces.vocab_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.pieces.id_to_piece(i): i for i in range(self.vocab_size)}

    def encode_text(self, text: str) -> list[int]:
        """The ids of `text` alone: no `<s>`, and no special token whatever the text looks like."""
        return self.pieces.encode(text)

    def _tokenize(self, text: str, **settings: Any) -> list[str]:
        return self.pieces.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens])

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **settings: Any,
    ) -> str:
        """Text of `token_ids`; special tokens appear by name unless they are skipped.

        Runs between special tokens are decoded whole, so that characters made of several byte
        pieces come out right.
        """
        if isinstance(token_ids, int):
            token_ids = [token_ids]
        text: list[str] = []
        run: list[int] = []
        for token_id in token_ids:
            if token_id >= NUM_SPECIALS:
                run.append(token_id)
                continue
            text.append(self.pieces.decode(run))
            run = []
            if not skip_special_tokens:
                text.append(self.pieces.id_to_piece(token_id))
        text.append(self.pieces.decode(run))
        return "".join(text)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        name = f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE
        target = Path(save_directory) / name
        if Path(self.vocab_file).resolve() != target.resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

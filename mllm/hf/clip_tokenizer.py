"""The trainer's SentencePiece tokenizer as a `tokenizer.json`, for CLIP: `transformers` reads it
without code of ours.

Ids of text are the trainer's. The special tokens of a caption stand behind them, because CLIP's
text model must not have a `</s>` of id 2: it takes that for a mistake of early configs, and the
highest id of a caption for its end. As the highest of all, `</s>` is meant either way.

    0 ... V - 1    the pieces of tokenizer.model; the first of them, the specials, never occur
    V              <pad>
    V + 1          <s>
    V + 2          </s>

The search for the best pieces adds in float64 here and in float32 there, so where two are equally
good (44 + 4 or 4 + 44) it may choose the other: in 6 of 39,666 lines of the demo's texts.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mllm.config import ContrastiveConfig
from mllm.errors import UserError
from tokenizer.specials import BOS_ID, EOS_ID, NUM_SPECIALS, PAD_ID, SPECIALS, UNK_ID

# In this order behind the pieces.
MOVED = {"<pad>": PAD_ID, "<s>": BOS_ID, "</s>": EOS_ID}
# A byte's piece is spelt `<0x41>` here, which a text may spell too: cut behind its `<`.
BYTE_NAME = r"<(?=0x[0-9A-F]{2}>)"


def clip_tokenizer(model_path: str | Path, settings: ContrastiveConfig) -> PreTrainedTokenizerFast:
    """Captions to ids as the vision stage reads them: core, `<s>`, pieces, `</s>`.

    Args:
        model_path: the SentencePiece file.
        settings: `text_len`, and what is left off captions.

    Raises:
        UserError: a SentencePiece model that changes texts, as those of others do.
    """
    vocabulary = _vocabulary(Path(model_path))
    ids = {name: len(vocabulary) + i for i, name in enumerate(MOVED)}
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=UNK_ID, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([*_core(settings), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(BYTE_NAME), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(MOVED))
    assert all(tokenizer.token_to_id(name) == number for name, number in ids.items())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, ids[name]) for name in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=settings.text_len,
        padding_side="right",
        split_special_tokens=True,  # text that spells `</s>` is text
        clean_up_tokenization_spaces=False,
    )


def _vocabulary(path: Path) -> list[tuple[str, float]]:
    """Pieces with scores as SentencePiece's search has them, in the order of ids."""
    # Generated code, without types.
    from sentencepiece import sentencepiece_model_pb2 as pb2

    proto: Any = pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    spec, kinds = proto.normalizer_spec, type(proto).SentencePiece
    if spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        raise UserError(
            f"{path} changes texts before it cuts them, which --format clip does not; train with a "
            "tokenizer of `mllm tokenizer train`"
        )
    scores = [piece.score for piece in proto.pieces if piece.type == kinds.NORMAL]
    lowest, highest = min(scores), max(scores)
    pieces = []
    for number, piece in enumerate(proto.pieces):
        if number < NUM_SPECIALS:  # no text has a space here, so none becomes one of these
            pieces.append((f" {piece.piece}", lowest))
        elif piece.type == kinds.BYTE:  # not below the others: unknown characters follow the lowest
            pieces.append((piece.piece, lowest))
        elif piece.type == kinds.USER_DEFINED:
            pieces.append((piece.piece, len(piece.piece) * highest - 0.1))
        else:
            pieces.append((piece.piece, piece.score))
    assert len(SPECIALS) == NUM_SPECIALS <= len(pieces)
    return pieces


def _core(settings: ContrastiveConfig) -> list[normalizers.Normalizer]:
    """`PairStream.core`: neither the prefix nor what follows the first end."""
    steps: list[normalizers.Normalizer] = []
    if settings.caption_prefix:
        steps.append(normalizers.Replace(Regex(rf"\A{re.escape(settings.caption_prefix)}"), ""))
    if settings.caption_end:
        ends = "|".join(map(re.escape, settings.caption_end))
        steps.append(normalizers.Replace(Regex(rf"(?:{ends})[\s\S]*"), ""))
    return steps

"""Kosmos-2's SentencePiece file under this trainer's table of special ids.

Kosmos-2 numbers tokens in fairseq's way (kosmos-1.md 2.1): `<s> <pad> </s> <unk>`, the file's
pieces from its third on, `<mask>`, then the tags of TAGS and `<patch_index_0000>` and so on. Here
the specials are the first ids of every model (`tokenizer.specials`), because all that places or
suppresses them goes by that table. So the rows of the embedding are put into our order:

    ours            Kosmos-2's
    0..15           its `<s> <pad> </s> <unk> <image> </image> </line>`; none for the others
    16...           its pieces, in its order
    behind these    its `<mask>` and its other tags, as control symbols: text never becomes one
"""

from pathlib import Path
from typing import Any

import sentencepiece
import torch

from mllm.errors import UserError
from tokenizer.specials import BOS_ID, EOS_ID, NUM_SPECIALS, PAD_ID, SPECIALS, UNK_ID

FILE_NAME = "sentencepiece.bpe.model"  # a Unigram model in spite of its name
HEAD = ("<s>", "<pad>", "</s>", "<unk>")
TAGS = (
    "<mask>",
    "</doc>",
    "<image>",
    "</image>",
    "</chunk>",
    "</line>",
    "<phrase>",
    "</phrase>",
    "<object>",
    "</object>",
    "</delimiter_of_multi_objects/>",
    "<grounding>",
)
NUM_FILE_SPECIALS = 3  # <unk>, <s>, </s> stand first in the file


def convert(path: Path, vocab_size: int) -> tuple[bytes, list[int | None]]:
    """The SentencePiece model under our table, and for each of its ids Kosmos-2's, if it has one.

    Args:
        path: Kosmos-2's `sentencepiece.bpe.model`.
        vocab_size: rows of Kosmos-2's embedding.

    Raises:
        UserError: not such a file, or more pieces than rows.
    """
    # Generated code, without types.
    from sentencepiece import sentencepiece_model_pb2 as pb2

    proto: Any = pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        # The library checks what the bare proto would take for a model without pieces.
        sentencepiece.SentencePieceProcessor(model_file=str(path))
        proto.ParseFromString(path.read_bytes())
    except RuntimeError:
        raise UserError(f"{path}: not a SentencePiece model; copy it again") from None
    first = [piece.piece for piece in proto.pieces[:NUM_FILE_SPECIALS]]
    if first != ["<unk>", "<s>", "</s>"]:
        raise UserError(f"{path}: begins with {first}, not with <unk> <s> </s> as Kosmos-2's does")
    text = [proto.pieces[i] for i in range(NUM_FILE_SPECIALS, len(proto.pieces))]
    num_tags = vocab_size - len(HEAD) - len(text)
    if num_tags <= TAGS.index("</line>"):
        raise UserError(
            f"{path}: {len(text)} pieces leave {num_tags} of vocab_size {vocab_size} for tags, "
            f"Kosmos-2 needs {TAGS.index('</line>') + 1} or more; the file is another model's"
        )
    theirs = {name: i for i, name in enumerate(HEAD)}
    theirs |= {_tag(i): len(HEAD) + len(text) + i for i in range(num_tags)}

    rows = [theirs.get(name) for name in SPECIALS]
    rows += [len(HEAD) + i for i in range(len(text))]
    kinds = type(proto).SentencePiece
    del proto.pieces[:]
    for name, special_id in SPECIALS.items():
        proto.pieces.add(
            piece=name, score=0, type=kinds.UNKNOWN if special_id == UNK_ID else kinds.CONTROL
        )
    proto.pieces.extend(text)
    for name in [name for name in theirs if name not in SPECIALS]:
        proto.pieces.add(piece=name, score=0, type=kinds.CONTROL)
        rows.append(theirs[name])
    spec: Any = proto.trainer_spec
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = BOS_ID, PAD_ID, EOS_ID, UNK_ID
    spec.pad_piece, spec.vocab_size = "<pad>", len(proto.pieces)
    return proto.SerializeToString(), rows


def _tag(number: int) -> str:
    if number < len(TAGS):
        return TAGS[number]
    return f"<patch_index_{number - len(TAGS):04d}>"


def permute_rows(table: torch.Tensor, rows: list[int | None]) -> torch.Tensor:
    """The embedding (V, D) in our order.

    A token that Kosmos-2 lacks gets the mean of all rows. Its logit is then the mean logit, so the
    nine of them take at most 9 / V of the probability from the others (Jensen).
    """
    mean = table.float().mean(0).to(table.dtype)
    found = torch.stack([mean if row is None else table[row] for row in rows[:NUM_SPECIALS]])
    others = torch.tensor(rows[NUM_SPECIALS:])
    return torch.cat((found, table[others]))

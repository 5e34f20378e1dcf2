"""The special tokens: one table, ids fixed here and nowhere else.

All of them are SentencePiece *control* symbols (and its unknown symbol), so no text, not even text
that spells `<image>`, ever encodes to one of these ids; only `mllm.stream.encode` places them.
"""

BOS_ID = 0  # <s>       opens a document, or a joined row
PAD_ID = 1  # <pad>     unused positions
EOS_ID = 2  # </s>      closes a document; divides the documents of a joined row
UNK_ID = 3  # <unk>     never produced: bytes stand in for unknown characters
BOI_ID = 4  # <image>   opens an image
EOI_ID = 5  # </image>  closes an image
SLOT_ID = 6  # <slot>   stands at an image position; its embedding is overwritten by a latent
LINE_ID = 7  # </line>  KOSMOS-1's end of line; unused by default, newlines are text here

SPECIALS: dict[str, int] = {
    "<s>": BOS_ID,
    "<pad>": PAD_ID,
    "</s>": EOS_ID,
    "<unk>": UNK_ID,
    "<image>": BOI_ID,
    "</image>": EOI_ID,
    "<slot>": SLOT_ID,
    "</line>": LINE_ID,
    **{f"<reserved_{i}>": 8 + i for i in range(8)},
}
NUM_SPECIALS = len(SPECIALS)  # every id below is special, every id from here on is text

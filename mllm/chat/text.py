"""Texts between a user, a model and a terminal."""

import re
import unicodedata

BAD_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # parts of Persian words and of joined emoji
SURROGATE = re.compile("[\ud800-\udfff]")


def printable_lines(text: str) -> str:
    """`text` without control characters, which could command a terminal; newlines stay.

    Those of category Cf among them: they turn the order of what is shown around (U+202E).
    """
    kept = (
        c
        for c in text.replace("\t", " ")
        if c == "\n" or c in JOINERS or unicodedata.category(c) not in BAD_CATEGORIES
    )
    return "".join(kept)


def whole(text: str) -> str:
    """`text` with U+FFFD for halves of characters: bytes of a terminal that are no UTF-8.

    SentencePiece and JSON take no such halves; names of files may have them.
    """
    return SURROGATE.sub("\ufffd", text)

"""Texts between a user, a model and a terminal."""

import unicodedata


def printable_lines(text: str) -> str:
    """`text` without control characters, which could command a terminal; newlines stay.

    Those of category Cf among them: they turn the order of what is shown around (U+202E).
    """
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in BAD_CATEGORIES)


BAD_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")

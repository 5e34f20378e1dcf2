"""What a tokenizer does to text: round trip, fertility, byte fallback."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from corpora.document import Document, TextSegment
from tokenizer.specials import NUM_SPECIALS, SPECIALS
from tokenizer.tokenizer import Tokenizer


def report(tokenizer: Tokenizer, documents: Iterable[Document]) -> dict[str, Any]:
    """Counts over the text segments of `documents`.

    Returns:
        `num_texts`, `num_tokens`; `bytes_per_token`, `tokens_per_word` (a word is a run without
        spaces); `byte_fallback`, the share of tokens that stand for one byte; `round_trip`, the
        share of texts that decode to themselves, and the first five that do not; `pieces_used`, the
        share of text pieces seen; `produces_specials`, ids that text made special (always none).
    """
    num_texts = num_tokens = num_bytes = num_words = num_byte_tokens = num_equal = 0
    is_used = np.zeros(tokenizer.vocab_size, dtype=bool)
    is_byte = np.array([tokenizer.is_byte(i) for i in range(tokenizer.vocab_size)])
    changed: list[str] = []
    for document in documents:
        for segment in document.segments:
            if not isinstance(segment, TextSegment):
                continue
            token_ids = np.array(tokenizer.encode(segment.text), dtype=np.int64)
            num_texts += 1
            num_tokens += len(token_ids)
            num_bytes += len(segment.text.encode())
            num_words += len(re.findall(r"\S+", segment.text))
            num_byte_tokens += int(is_byte[token_ids].sum())
            is_used[token_ids] = True
            if tokenizer.decode(token_ids.tolist()) == segment.text:
                num_equal += 1
            elif len(changed) < 5:
                changed.append(f"{document.key}: {segment.text[:80]!r}")
    is_text = ~is_byte & (np.arange(tokenizer.vocab_size) >= NUM_SPECIALS)
    injected = tokenizer.encode(" ".join(SPECIALS))
    return {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "num_texts": num_texts,
        "num_tokens": num_tokens,
        "bytes_per_token": round(num_bytes / max(1, num_tokens), 4),
        "tokens_per_word": round(num_tokens / max(1, num_words), 4),
        "byte_fallback": round(num_byte_tokens / max(1, num_tokens), 6),
        "round_trip": round(num_equal / max(1, num_texts), 6),
        "changed_by_round_trip": changed,
        "pieces_used": round(float(is_used[is_text].mean()), 4),
        "produces_specials": sorted(
            {int(i) for i in np.flatnonzero(is_used[:NUM_SPECIALS])}
            | {i for i in injected if i < NUM_SPECIALS}
        ),
    }

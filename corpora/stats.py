"""Counts, lengths and resolutions of a corpus.

What the index knows is counted over all samples. Words, sources and tokens need the texts: they
are counted over all samples of a small corpus and over an even draw of a large one, and the
figures say which.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpora.document import TextSegment
from corpora.reader import Corpus
from mllm.command import progress
from mllm.errors import BadSample

PERCENTILES = (0, 5, 50, 95, 100)
MAX_READ = 20_000  # samples whose text is read
MAX_TOKENISED = 2_000  # of these, how many are tokenised
MAX_SORTED = 4_000_000  # values that percentiles are taken from
SCAN = 1 << 20  # index entries looked at once


@dataclass(frozen=True)
class CorpusStats:
    """Figures as plain JSON values, and the values that plots are drawn from."""

    figures: dict[str, Any]
    values: dict[str, np.ndarray]  # text_bytes, words, tokens, width, height, aspect


def stats(
    corpus_dir: str | Path,
    index_dir: str | Path | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> CorpusStats:
    """Lengths in UTF-8 bytes, whitespace-divided words and, given a tokenizer, tokens."""
    corpus = Corpus(corpus_dir, index_dir)
    read = _read_samples(corpus, count_tokens)
    sizes = _thinned(corpus.image_sizes)
    sizes = sizes[(sizes > 0).all(axis=1)]  # (0, 0): a header that cannot be read
    values = {
        "text_bytes": _thinned(corpus.text_bytes),
        "words": read.words,
        "tokens": read.tokens,
        "width": sizes[:, 0],
        "height": sizes[:, 1],
        "aspect": sizes[:, 0] / np.maximum(sizes[:, 1], 1),
    }
    text_sum = int(corpus.text_bytes.sum(dtype=np.int64))
    kinds, per_sample = _counts(corpus)
    figures = {
        "corpus": str(corpus.corpus_dir),
        "fingerprint": corpus.fingerprint,
        "samples": len(corpus),
        "shards": len(corpus.shards),
        "kinds": kinds | {"unusable": corpus.num_bad_samples},
        "read_samples": read.num_samples,
        "sources": dict(read.sources.most_common(50)),
        "text_bytes": {"sum": text_sum, "percentiles": _percentiles(values["text_bytes"])},
        "words": _lengths(read.words, len(corpus), MAX_READ),
        "images": {
            "sum": corpus.images.total,
            "per_sample": per_sample,
            "width": _percentiles(values["width"]),
            "height": _percentiles(values["height"]),
            "aspect": _percentiles(values["aspect"], 3),
        },
    }
    if count_tokens is not None:
        tokens = _lengths(read.tokens, len(corpus), MAX_TOKENISED)
        figures["tokens"] = {"of_samples": len(read.tokens)} | tokens
    return CorpusStats(figures, values)


@dataclass(frozen=True)
class _Read:
    """What was counted in the samples that were read."""

    num_samples: int
    sources: Counter[str]  # samples by `source` of their JSON
    words: np.ndarray  # int64, of each sample
    tokens: np.ndarray  # int64, of each tokenised sample; special tokens and slots not counted


def _read_samples(corpus: Corpus, count_tokens: Callable[[str], int] | None) -> _Read:
    sources: Counter[str] = Counter()
    words, tokens = [], []
    numbers = _evenly(len(corpus), MAX_READ)
    tokenised = set(_evenly(len(numbers), MAX_TOKENISED)) if count_tokens else set()
    for place, i in enumerate(progress(numbers, "reading samples")):
        try:
            document = corpus.text_document(i)
        except BadSample:
            continue
        # A JSON string may hold half a surrogate pair, which cannot be printed.
        source = str(document.meta.get("source", "(not said)"))
        sources[source.encode("utf-8", "backslashreplace").decode()] += 1
        texts = [s.text for s in document.segments if isinstance(s, TextSegment)]
        words.append(sum(len(text.split()) for text in texts))
        if count_tokens and place in tokenised:
            tokens.append(sum(map(count_tokens, texts)))
    return _Read(len(words), sources, np.array(words, np.int64), np.array(tokens, np.int64))


def _evenly(total: int, at_most: int) -> range | list[int]:
    """Up to `at_most` of the numbers below `total`, evenly apart."""
    if total <= at_most:
        return range(total)
    return [number * total // at_most for number in range(at_most)]


def _counts(corpus: Corpus) -> tuple[dict[str, int], dict[str, int]]:
    """(samples of each kind, samples by number of pictures), a part of the index at a time."""
    kinds = Counter[str]()
    per_sample = Counter[int]()
    for start in _parts(len(corpus)):
        has_text = corpus.text_bytes[start : start + SCAN] > 0
        images = corpus.num_images[start : start + SCAN]
        kinds["text"] += int((has_text & (images == 0)).sum())
        kinds["one picture and text"] += int((has_text & (images == 1)).sum())
        kinds["several pictures and text"] += int((has_text & (images > 1)).sum())
        kinds["pictures only"] += int((~has_text & (images > 0)).sum())
        found, counts = np.unique(images, return_counts=True)
        per_sample.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    return dict(kinds), {str(number): per_sample[number] for number in sorted(per_sample)}


def _parts(total: int) -> Iterator[int]:
    yield from range(0, max(total, 1), SCAN)


def _thinned(values: np.ndarray) -> np.ndarray:
    """The values, or every n-th of very many."""
    return values[:: max(1, len(values) // MAX_SORTED)]


def _lengths(values: np.ndarray, num_samples: int, at_most: int) -> dict[str, Any]:
    """Sum and percentiles; where only `at_most` samples were counted, the sum is an estimate."""
    mean = float(values.mean()) if len(values) else 0.0
    if num_samples <= at_most:
        total = {"sum": int(values.sum())}
    else:
        total = {"estimated_sum": round(mean * num_samples)}
    return total | {"mean": round(mean, 1), "percentiles": _percentiles(values)}


def _percentiles(values: np.ndarray, digits: int = 1) -> dict[str, float]:
    if len(values) == 0:
        return {}
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": round(float(v), digits) for p, v in zip(PERCENTILES, found, strict=True)}

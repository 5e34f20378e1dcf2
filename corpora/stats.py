"""Counts, lengths and resolutions of a corpus, from its index alone; sources from the samples."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from corpora.document import TextSegment
from corpora.reader import Corpus
from mllm.command import progress
from mllm.errors import BadSample

PERCENTILES = (0, 5, 50, 95, 100)


def stats(corpus_dir: Path, index_dir: Path | None = None) -> dict[str, Any]:
    """Figures as plain JSON values; lengths in UTF-8 bytes and whitespace-divided words."""
    corpus = Corpus(corpus_dir, index_dir)
    text_bytes, num_images = np.asarray(corpus.text_bytes), np.asarray(corpus.num_images)
    has_text = text_bytes > 0
    sources, words, bad = _read_samples(corpus)
    return {
        "corpus": str(corpus.corpus_dir),
        "fingerprint": corpus.fingerprint,
        "samples": len(corpus),
        "shards": len({corpus.shard_of(i) for i in range(len(corpus))}),
        "kinds": {
            "text": int((has_text & (num_images == 0)).sum()),
            "one picture and text": int((has_text & (num_images == 1)).sum()),
            "several pictures and text": int((has_text & (num_images > 1)).sum()),
            "pictures only": int((~has_text & (num_images > 0)).sum()),
            "unusable": bad,
        },
        "sources": dict(sources.most_common()),
        "text_bytes": {"sum": int(text_bytes.sum()), "percentiles": _percentiles(text_bytes)},
        "words": {"sum": int(words.sum()), "percentiles": _percentiles(words)},
        "images": {
            "sum": int(num_images.sum()),
            "per_sample": {
                str(n): int(count) for n, count in enumerate(np.bincount(num_images)) if count
            },
            "width": _percentiles(corpus.image_sizes[:, 0]),
            "height": _percentiles(corpus.image_sizes[:, 1]),
        },
    }


def _read_samples(corpus: Corpus) -> tuple[Counter[str], np.ndarray, int]:
    """(samples by `source` of their meta, words of each sample, how many are unusable)."""
    sources: Counter[str] = Counter()
    words = np.zeros(len(corpus), np.int64)
    bad = 0
    for i in progress(range(len(corpus)), "reading samples"):
        try:
            document = corpus.document(i)
        except BadSample:
            bad += 1
            continue
        sources[str(document.meta.get("source", "(not said)"))] += 1
        words[i] = sum(len(s.text.split()) for s in document.segments if isinstance(s, TextSegment))
    return sources, words, bad


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if len(values) == 0:
        return {}
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": round(float(v), 1) for p, v in zip(PERCENTILES, found, strict=True)}

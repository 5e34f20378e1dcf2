"""How alike a query and the samples of a support set are: what `--select rices_*` sorts by."""

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np

from corpora.document import TextSegment
from evals.api import Exemplar, Model, Query, Support
from evals.shots import Rank
from mllm.command import progress
from mllm.errors import UserError
from mllm.files import fingerprint, write_aside

FEATURE_BATCH = 64  # pictures of one pass of the vision encoder


def rank_by_image(support: Support, model: Model, cache_dir: Path) -> Rank:
    """Support samples by the cosine similarity of the first picture's features.

    Features of the support set are kept in `cache_dir`, under the fingerprints of both.

    Raises:
        UserError: A sample, or a query, has no picture.
    """
    features = _support_features(support, model, cache_dir)

    def rank(query: Query) -> list[int]:
        likeness = features @ _features([_picture(query)], model)[0]
        return np.argsort(-likeness, kind="stable").tolist()

    return rank


def _support_features(support: Support, model: Model, cache_dir: Path) -> np.ndarray:
    path = cache_dir / f"features-{fingerprint([support.fingerprint, model.fingerprint])}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    parts = []
    starts = range(0, len(support.ids), FEATURE_BATCH)
    for start in progress(starts, "features of the support set"):
        ids = support.ids[start : start + FEATURE_BATCH]
        parts.append(_features([_picture(support.read(i)) for i in ids], model))
    features = np.concatenate(parts)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with write_aside(path, "wb") as file:
        np.save(file, features)
    return features


def _features(pictures: list[bytes], model: Model) -> np.ndarray:
    return model.image_features(pictures).astype(np.float32)


def _picture(sample: Query | Exemplar) -> bytes:
    if not sample.images:
        raise UserError(f"--select rices_image: {sample.id} has no picture; use rices_text")
    return sample.images[0]


def rank_by_text(support: Support) -> Rank:
    """Support samples by the cosine similarity of TF-IDF over the words of the question."""
    counts = [Counter(_words(support.read(sample_id).question)) for sample_id in support.ids]
    frequency = Counter(word for count in counts for word in count)
    weights = {word: math.log((1 + len(counts)) / (1 + n)) + 1 for word, n in frequency.items()}
    vectors = [_unit(count, weights) for count in counts]

    def rank(query: Query) -> list[int]:
        asked = _unit(Counter(_words(query.segments)), weights)
        likeness = [sum(x * v.get(word, 0.0) for word, x in asked.items()) for v in vectors]
        return sorted(range(len(vectors)), key=lambda place: -likeness[place])

    return rank


def _words(segments: tuple) -> list[str]:
    text = " ".join(segment.text for segment in segments if isinstance(segment, TextSegment))
    return re.findall(r"\w+", text.lower())


def _unit(count: Counter, weights: dict[str, float]) -> dict[str, float]:
    vector = {word: n * weights[word] for word, n in count.items() if word in weights}
    length = math.hypot(*vector.values())
    return {word: x / length for word, x in vector.items()} if length else {}

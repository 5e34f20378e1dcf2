"""Models that are none, which a score is held against.

* Pixel neighbour: the nearest training picture, by raw pixels at the model's image size.
* Unigram: token frequencies of the training text.
* Question only: the commonest training answer to the same question.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from corpora.reader import Corpus
from evals.api import Resize

NEIGHBOUR_CHUNK = 512  # training pictures compared at once: 25 MB of float32 at 64 px

# ----------------------------------------------------------------------------------------------
# Pixel neighbour


@dataclass(frozen=True)
class Gallery:
    """Training pictures with their names.

    Args:
        pixels: uint8 (N, 3 * S * S).
        metas: Each picture's meta, with `answer` and `captions`.
    """

    pixels: np.ndarray
    metas: tuple[dict, ...]


@lru_cache(maxsize=2)
def read_gallery(corpus_dir: Path, size: int, resize: Resize) -> Gallery:
    """All pictures of a support corpus at the model's image size (cells share it)."""
    corpus = Corpus(corpus_dir)
    documents = [corpus.document(i) for i in range(len(corpus))]
    pixels = np.stack([flat_pixels(document.images[0], size, resize) for document in documents])
    return Gallery(pixels, tuple(document.meta for document in documents))


def flat_pixels(data: bytes, size: int, resize: Resize) -> np.ndarray:
    """uint8 (3 * S * S) by the one function that every picture goes through."""
    from mllm.images import open_picture, to_pixels  # imports torch, which `list` can do without

    return to_pixels(open_picture(data), size, resize).reshape(-1)


def pixel_distances(pictures: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of pixels in 0..1.

    Args:
        pictures: uint8 (Q, 3 * S * S).
        gallery: uint8 (N, 3 * S * S).

    Returns:
        float32 (Q, N)
    """
    asked = pictures.astype(np.float32) / 255
    asked_norms = (asked**2).sum(axis=1)
    distances = np.empty((len(pictures), len(gallery)), np.float32)
    for start in range(0, len(gallery), NEIGHBOUR_CHUNK):
        known = gallery[start : start + NEIGHBOUR_CHUNK].astype(np.float32) / 255
        norms = asked_norms[:, None] + (known**2).sum(axis=1)
        distances[:, start : start + len(known)] = norms - 2 * asked @ known.T
    return distances


def neighbour_choices(
    distances: np.ndarray, answers: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[int | None]:
    """For each query the candidate whose nearest training picture is nearest; first on ties.

    Args:
        distances: float32 (Q, N).
        answers: N names of the training pictures.
        candidates: Q candidate lists. A candidate without a training picture is never chosen.

    Returns:
        Q indices; None where no candidate has a training picture.
    """
    positions = defaultdict(list)
    for i, answer in enumerate(answers):
        positions[answer].append(i)
    choices: list[int | None] = []
    for row, names in zip(distances, candidates, strict=True):
        nearest = [min((row[i] for i in positions[name]), default=math.inf) for name in names]
        best = min(nearest)
        choices.append(None if best == math.inf else nearest.index(best))
    return choices


# ----------------------------------------------------------------------------------------------
# Text-only baselines


def unigram_log_probs(token_ids: Iterable[Sequence[int]], vocab_size: int) -> np.ndarray:
    """float64 (V,): log frequencies of tokens over training texts, each counted once more."""
    counts = np.ones(vocab_size)
    for ids in token_ids:
        counts += np.bincount(ids, minlength=vocab_size)
    return np.log(counts / counts.sum())


def commonest(answers: Iterable[str]) -> str:
    """The commonest string; the first in the alphabet on ties."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def question_only(pairs: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """Answers a question by its commonest training answer, a new question by the commonest of all.

    Args:
        pairs: (question, answer) of the training split.
    """
    by_question = defaultdict(list)
    for question, answer in pairs:
        by_question[question].append(answer)
    fallback = commonest(answer for answers in by_question.values() for answer in answers)
    best = {question: commonest(answers) for question, answers in by_question.items()}
    return lambda question: best.get(question, fallback)

"""Numbers from answers: norms for ranking, standard errors, VQA accuracy, exact match."""

import math
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from evals.api import CandidateScore
from evals.contractions import CONTRACTIONS

NORMS: dict[str, Callable[[CandidateScore], float]] = {
    "sum": lambda candidate: candidate.ll,
    "token": lambda candidate: candidate.ll / candidate.num_tokens,
    "char": lambda candidate: candidate.ll / candidate.num_chars,
    "byte": lambda candidate: candidate.ll / candidate.num_bytes,
    "uncond": lambda candidate: candidate.ll - (candidate.ll_uncond or 0.0),
}


def best_candidate(candidates: Sequence[CandidateScore], norm: str) -> int:
    """Index of the highest score under `norm`; the first on ties."""
    scores = [NORMS[norm](candidate) for candidate in candidates]
    return scores.index(max(scores))


def binomial_se(share: float, n: int) -> float:
    """Standard error of a share (0 to 1) of n independent answers; NaN below two."""
    return math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan


def bootstrap_se(values: Sequence[float], num_draws: int = 1000, seed: int = 0) -> float:
    """Standard deviation of the mean over resampled images; seeded, NaN below two images."""
    if len(values) < 2:
        return math.nan
    array = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(len(array), size=(num_draws, len(array)))
    return float(array[draws].mean(axis=1).std(ddof=1))


def plain(text: str) -> str:
    """Lower-case words with single spaces, nothing else: what names are compared by."""
    return " ".join(re.findall(r"\w+", text.lower()))


def holds_name(caption: str, name: str) -> bool:
    """Whether a caption names the picture: its name as whole words."""
    return f" {plain(name)} " in f" {plain(caption)} "


def exact_match_normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces (the SQuAD rules)."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 where both are equal after `exact_match_normalise`."""
    return float(exact_match_normalise(answer) == exact_match_normalise(gold))


# ----------------------------------------------------------------------------------------------
# VQA accuracy, as GT-Vision-Lab/VQA computes it, but leaving one human out by index

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
# The official look-behind is misspelt and has no effect, and its flag argument is read as a count.
FULL_STOP = re.compile(r"\.(?!\d)")
MAX_FULL_STOPS = 32
NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}


def vqa_clean(text: str) -> str:
    """Newlines and tabs to spaces, ends stripped: done to every answer in every mode."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_normalise(text: str) -> str:
    """The official answer normalisation: punctuation, full stops, numbers, articles, contractions.

    Examples: `100,978` -> `100978`; `two-tone` -> `2 tone`; `U.K.` -> `uk`; `none` -> `0`.
    """
    original = text = vqa_clean(text)
    has_digit_comma = DIGIT_COMMA.search(original) is not None
    for mark in PUNCTUATION:
        is_beside_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if is_beside_space or has_digit_comma else " ")
    text = FULL_STOP.sub("", text, count=MAX_FULL_STOPS)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    kept = (word for word in words if word not in ("a", "an", "the"))
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def vqa_accuracy(answer: str, human_answers: Sequence[str], mode: str = "official") -> float:
    """Mean over humans k of min(1, matches among the others / 3): 0, 0.3, 0.6, 0.9, 1 of ten.

    Args:
        answer: What the model said.
        human_answers: Usually ten.
        mode: `official` normalises nothing where all humans typed the same string, so that only
            that exact string counts; `always` normalises regardless.
    """
    humans = [vqa_clean(human) for human in human_answers]
    answer = vqa_clean(answer)
    if mode == "always" or len(set(humans)) > 1:
        humans = [vqa_normalise(human) for human in humans]
        answer = vqa_normalise(answer)
    matches = [human == answer for human in humans]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)

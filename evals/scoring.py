"""Numbers from answers: norms for ranking, AUC, standard errors, VQA accuracy, EM and F1."""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import numpy as np

from evals.api import CandidateScore
from evals.contractions import CONTRACTIONS

NORMS: dict[str, Callable[[CandidateScore], float]] = {
    "sum": lambda candidate: candidate.ll,
    "token": lambda candidate: candidate.ll / candidate.num_tokens,
    "char": lambda candidate: candidate.ll / candidate.num_chars,
    "byte": lambda candidate: candidate.ll / candidate.num_bytes,
}
UNCOND = "uncond"  # the fifth norm, which needs a second pass: see `CandidateScore.ll_uncond`
NORM_NAMES = (*NORMS, UNCOND)


def candidate_score(candidate: CandidateScore, norm: str) -> float:
    """What candidates are compared by under `norm`."""
    if norm != UNCOND:
        return NORMS[norm](candidate)
    if candidate.ll_uncond is None:
        raise ValueError(f"{candidate.text!r} has no log-likelihood given an empty prompt")
    return candidate.ll - candidate.ll_uncond


def best_candidate(candidates: Sequence[CandidateScore], norm: str) -> int:
    """Index of the highest score under `norm`; the first on ties."""
    scores = [candidate_score(candidate, norm) for candidate in candidates]
    return scores.index(max(scores))


def accuracy_by_norm(
    answers: Sequence[Sequence[CandidateScore]], golds: Sequence[int]
) -> dict[str, float]:
    """Share (0 to 1) of queries whose best candidate is the gold one, under every norm.

    Args:
        answers: The candidates of each query.
        golds: Index of each query's right candidate.

    Returns:
        Norm to accuracy; `uncond` only where every candidate has its `ll_uncond`.
    """
    norms = list(NORMS)
    if all(candidate.ll_uncond is not None for row in answers for candidate in row):
        norms.append(UNCOND)
    return {
        norm: sum(
            best_candidate(candidates, norm) == gold
            for candidates, gold in zip(answers, golds, strict=True)
        )
        / len(golds)
        for norm in norms
    }


def macro_f1(golds: Sequence[Hashable], answers: Sequence[Hashable]) -> float:
    """Plain mean of the F1 (0 to 1) of every class that occurs as a gold or as an answer."""
    gold_counts, answer_counts = Counter(golds), Counter(answers)
    right = Counter(gold for gold, answer in zip(golds, answers, strict=True) if gold == answer)
    classes = gold_counts | answer_counts
    scores = [2 * right[c] / (gold_counts[c] + answer_counts[c]) for c in classes]
    return sum(scores) / len(scores)


def roc_auc(labels: Sequence[bool], scores: Sequence[float]) -> float | None:
    """P(a positive scores higher) + P(the two score the same) / 2; None with one class alone.

    Args:
        labels: Whether each query is a positive.
        scores: Higher for positives. Keep float32 or better: lower precision makes ties.
    """
    is_positive = np.asarray(labels, bool)
    num_positive = int(is_positive.sum())
    num_pairs = num_positive * (len(is_positive) - num_positive)
    if num_pairs == 0:
        return None
    _, group, sizes = np.unique(np.asarray(scores, float), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]  # the mean rank within a tie, from 1
    wins = ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(wins / num_pairs)


def roc_auc_se(
    labels: Sequence[bool], scores: Sequence[float], num_draws: int = 1000, seed: int = 0
) -> float:
    """Standard deviation of the AUC over resampled images; draws of one class alone are left out.

    Seeded; NaN below two draws that count.
    """
    is_positive, values = np.asarray(labels, bool), np.asarray(scores, float)
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(len(values), size=len(values)) for _ in range(num_draws))
    areas = [a for d in drawn if (a := roc_auc(is_positive[d], values[d])) is not None]  # type: ignore[arg-type]
    return float(np.std(areas, ddof=1)) if len(areas) > 1 else math.nan


def binomial_se(share: float, n: int) -> float:
    """Standard error of a share (0 to 1) of n independent answers; NaN below two."""
    return math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan


def bootstrap_se(values: Sequence[float], num_draws: int = 1000, seed: int = 0) -> float:
    """Standard deviation of the mean over resampled images; seeded, NaN below two images."""
    if len(values) < 2:
        return math.nan
    array = np.asarray(values, float)
    generator = np.random.default_rng(seed)
    means = [  # a draw at a time: all at once would hold num_draws x n numbers
        array[generator.integers(len(array), size=len(array))].mean() for _ in range(num_draws)
    ]
    return float(np.std(means, ddof=1))


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


def token_f1(answer: str, gold: str) -> float:
    """F1 of the words both hold, each as often as it occurs, after `exact_match_normalise`.

    Where either side is empty: 1.0 if both are, else 0.0.
    """
    given, wanted = (exact_match_normalise(text).split() for text in (answer, gold))
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


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


@lru_cache(maxsize=1 << 17)  # a data set's millions of answers are some ten thousand
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
    n, matches = len(humans), humans.count(answer)
    # By index: a human who agrees is left out of the matches, one who does not is not among them.
    agreeing, others = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * agreeing + (n - matches) * others) / n

"""CIDEr-D, BLEU-1..4 and ROUGE-L over token lists: pycocoevalcap's formulas, equal to 1e-6.

Every score is over all images at once: CIDEr's document frequencies and BLEU's counts belong to
the whole set, so averaging them over batches would be wrong.
"""

import math
from collections import Counter

MAX_ORDER = 4  # n-grams up to this length
SIGMA = 6.0  # CIDEr-D's length penalty, in bigrams
BETA = 1.2  # ROUGE-L's weight of recall


def ngrams(tokens: list[str], order: int) -> Counter[tuple[str, ...]]:
    """Counts of the n-grams of one length."""
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def cider_d(references: list[list[list[str]]], hypotheses: list[list[str]]) -> list[float]:
    """CIDEr-D of each image (x 1: a perfect caption of distinct images is 10).

    Args:
        references: Token lists of each image's references.
        hypotheses: Token list of each image's caption.
    """
    log_images = math.log(len(references))
    scores = [0.0] * len(references)
    for order in range(1, MAX_ORDER + 1):
        counted = [[ngrams(tokens, order) for tokens in image] for image in references]
        frequency = Counter(gram for image in counted for gram in set().union(*image))

        def weigh(counts: Counter, frequency: Counter = frequency) -> dict:
            return {
                gram: count * (log_images - math.log(max(1, frequency[gram])))
                for gram, count in counts.items()
            }

        for i, hypothesis in enumerate(hypotheses):
            given = weigh(ngrams(hypothesis, order))
            similarity = 0.0
            for tokens, counts in zip(references[i], counted[i], strict=True):
                # The penalty counts bigrams, as the official code does.
                delta = max(0, len(hypothesis) - 1) - max(0, len(tokens) - 1)
                penalty = math.exp(-(delta**2) / (2 * SIGMA**2))
                similarity += penalty * _clipped_cosine(given, weigh(counts))
            scores[i] += 10 * similarity / len(references[i]) / MAX_ORDER
    return scores


def _clipped_cosine(given: dict, reference: dict) -> float:
    overlap = sum(
        min(weight, reference[gram]) * reference[gram]
        for gram, weight in given.items()
        if gram in reference
    )
    norms = math.hypot(*given.values()) * math.hypot(*reference.values())
    return overlap / norms if norms else 0.0


def bleu(references: list[list[list[str]]], hypotheses: list[list[str]]) -> list[float]:
    """BLEU-1..4 over the corpus: clipped counts, closest reference length, no smoothing."""
    tiny, small = 1e-15, 1e-9  # the official constants against division by zero
    correct, guessed = [0] * MAX_ORDER, [0] * MAX_ORDER
    hypothesis_length = reference_length = 0
    for image, hypothesis in zip(references, hypotheses, strict=True):
        hypothesis_length += len(hypothesis)
        # Ties go to the shorter reference.
        reference_length += min((abs(len(r) - len(hypothesis)), len(r)) for r in image)[1]
        for order in range(1, MAX_ORDER + 1):
            ceiling: Counter = Counter()
            for reference in image:
                ceiling |= ngrams(reference, order)
            correct[order - 1] += (ngrams(hypothesis, order) & ceiling).total()
            guessed[order - 1] += max(0, len(hypothesis) - order + 1)
    ratio = (hypothesis_length + tiny) / (reference_length + small)
    # An empty corpus of hypotheses has a ratio near zero, whose exponent would overflow downwards.
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (correct[order] + tiny) / (guessed[order] + small)
        scores.append(brevity * product ** (1 / (order + 1)))
    return scores


def rouge_l(references: list[list[str]], hypothesis: list[str]) -> float:
    """F (beta 1.2) of the best precision and the best recall, each over all references."""
    # The official code splits "" into one empty token, so that "" matches a reference of "".
    hypothesis = hypothesis or [""]
    references = [reference or [""] for reference in references]
    common = [_longest_common_subsequence(reference, hypothesis) for reference in references]
    precision = max(common) / len(hypothesis)
    recall = max(n / len(r) for n, r in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common_subsequence(left: list[str], right: list[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for token in left:
        diagonal = 0
        for j, other in enumerate(right, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if token == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]

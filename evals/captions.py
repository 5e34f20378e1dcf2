"""CIDEr-D, BLEU-4 and ROUGE-L of captions: pycocoevalcap's formulas.

The formulas are ours, equal to pycocoevalcap's to 1e-6 (tested). Only the tokenizer is official: a
Java program. Where `pycocoevalcap` (extra `eval`) and Java are present it is used, and the scores
carry the official names; elsewhere a tokenizer in Python, under names that end in `_simple`. The
two differ by 0.1 to 0.4 points of CIDEr.

Every score is over all images at once: CIDEr's document frequencies and BLEU's counts belong to
the whole set, so averaging them over batches would be wrong.
"""

import importlib.util
import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MAX_ORDER = 4  # n-grams up to this length
SIGMA = 6.0  # CIDEr-D's length penalty, in bigrams
BETA = 1.2  # ROUGE-L's weight of recall
# What the official tokenizer drops. Brackets come in lower case and stay, as `-lrb-`.
DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"]) | frozenset(
    [".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
TOKEN = re.compile(
    r"""
      \d+(?:[.,:]\d+)*                 # 5.5  100,978  2:50
    | (?:[^\W\d_]\.){2,}               # u.k.
    | \b(?:mr|mrs|ms|dr|st|vs|etc)\.
    | \w+?(?=n't\b)                    # do|n't
    | n't\b
    | '(?:s|m|d|ll|re|ve)\b            # girl|'s
    | \w+(?:[-/]\w+)*                  # left-hand
    | \.\.\. | -- | \S
    """,
    re.VERBOSE,
)
# Words that the Penn Treebank splits.
SPLIT_WORDS = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}

References = dict[str, list[str]]
Hypotheses = dict[str, str]


@dataclass(frozen=True)
class CaptionScores:
    """Scores in their published units (x 100).

    Args:
        suffix: "" for the official tokenizer, "_simple" for ours.
        cider_by_image: CIDEr-D of each image, whose mean is `cider`. It depends on which other
            images were evaluated.
    """

    suffix: str
    cider: float
    cider_by_image: dict[str, float]
    bleu_4: float
    rouge_l: float


def score_captions(references: References, hypotheses: Hypotheses) -> CaptionScores:
    """Scores over all images, with the official tokenizer where it can run.

    Args:
        references: Image id to its captions, one or more.
        hypotheses: Image id to the caption given; "" is legal and scores 0.

    Raises:
        ValueError: The two name different images, or an image has no reference.
    """
    if references.keys() != hypotheses.keys():
        raise ValueError(f"ids differ: {sorted(references.keys() ^ hypotheses.keys())[:3]}")
    empty = [image_id for image_id, captions in references.items() if not captions]
    if empty:
        raise ValueError(f"no reference caption for {empty[:3]}")
    if has_official_tokenizer():
        return _score(references, hypotheses, _tokenize_official, "")
    return _score(references, hypotheses, tokenize_simple, "_simple")


def has_official_tokenizer() -> bool:
    """Whether pycocoevalcap (whose jar is the tokenizer) and Java are both present."""
    return importlib.util.find_spec("pycocoevalcap") is not None and bool(shutil.which("java"))


def one_line(caption: str) -> str:
    """All Unicode white space collapsed: one more line would shift every later caption by one."""
    return " ".join(caption.split())


def tokenize_simple(captions: list[str]) -> list[list[str]]:
    """Close to Stanford's PTB tokenizer, lower-cased, without its 17 punctuation tokens."""
    lines = []
    for caption in captions:
        tokens: list[str] = []
        for word in TOKEN.findall(one_line(caption).lower().replace("’", "'")):
            tokens += SPLIT_WORDS.get(word, word).split()
        kept = (BRACKETS.get(token, token) for token in tokens if token not in DROPPED)
        lines.append([token for token in kept if token != '"'])
    return lines


def _tokenize_official(captions: list[str]) -> list[list[str]]:
    """Stanford CoreNLP 3.4.1 through its jar, by standard input: no file is written anywhere."""
    import pycocoevalcap.tokenizer.ptbtokenizer as official

    jar = Path(official.__file__).parent / official.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    text = "".join(one_line(caption) + "\n" for caption in captions)
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input=text.encode(), capture_output=True
    )
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(lines) != len(captions):
        raise RuntimeError(
            f"the PTB tokenizer gave {len(lines)} lines for {len(captions)} captions: "
            f"{done.stderr.decode()[-300:]}"
        )
    return [[token for token in line.split() if token not in DROPPED] for line in lines]


def _score(references: References, hypotheses: Hypotheses, tokenize, suffix: str) -> CaptionScores:
    ids = sorted(references)
    flat = [caption for image_id in ids for caption in references[image_id]]
    tokenized = iter(tokenize([*flat, *(hypotheses[image_id] for image_id in ids)]))
    refs = [[next(tokenized) for _ in references[image_id]] for image_id in ids]
    hyps = [next(tokenized) for _ in ids]
    by_image = cider_d(refs, hyps)
    return CaptionScores(
        suffix=suffix,
        cider=100 * sum(by_image) / len(by_image),
        cider_by_image={i: 100 * score for i, score in zip(ids, by_image, strict=True)},
        bleu_4=100 * bleu(refs, hyps)[3],
        rouge_l=100 * sum(rouge_l(r, h) for r, h in zip(refs, hyps, strict=True)) / len(hyps),
    )


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

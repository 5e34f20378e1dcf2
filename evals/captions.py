"""Captions scored as pycocoevalcap does: CIDEr-D, BLEU-1..4, ROUGE-L, METEOR, SPICE.

The first three formulas are ours, equal to pycocoevalcap's to 1e-6 (tested). Their tokenizer is the
official Java program where it can run, and the scores carry the official names; elsewhere a
tokenizer in Python, under names that end in `_simple`. The two differ by 0.1 to 0.4 points of
CIDEr. METEOR and SPICE are Java programs alone.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evals import java_scorers
from evals.caption_formulas import bleu, cider_d, rouge_l
from evals.java_scorers import DROPPED

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
Tokenize = Callable[[Sequence[str]], list[list[str]]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores in their published units (x 100).

    Args:
        suffix: "" for the official tokenizer, "_simple" for ours.
        tokenizer: Which it was, with its version.
        cider_by_image: CIDEr-D of each image, whose mean is `cider`. It depends on which other
            images were evaluated.
        bleu: BLEU-1 to BLEU-4.
        meteor: None where it was not asked for, or could not run.
        spice: The same.
        absent: Name of a score that was asked for to what is missing for it.
    """

    suffix: str
    tokenizer: str
    cider: float
    cider_by_image: dict[str, float]
    bleu: tuple[float, ...]
    rouge_l: float
    rouge_l_by_image: dict[str, float]
    meteor: float | None = None
    spice: float | None = None
    spice_by_image: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def bleu_4(self) -> float:
        return self.bleu[3]


def score_captions(
    references: References, hypotheses: Hypotheses, with_java_scores: bool = False
) -> CaptionScores:
    """Scores over all images, with the official tokenizer where it can run.

    Args:
        references: Image id to its captions, one or more.
        hypotheses: Image id to the caption given; "" is legal and scores 0.
        with_java_scores: METEOR and SPICE too, which take half a minute for 5,000 images and more.

    Raises:
        ValueError: The two name different images, or an image has no reference.
    """
    if references.keys() != hypotheses.keys():
        raise ValueError(f"ids differ: {sorted(references.keys() ^ hypotheses.keys())[:3]}")
    empty = [image_id for image_id, captions in references.items() if not captions]
    if empty:
        raise ValueError(f"no reference caption for {empty[:3]}")
    if has_official_tokenizer():
        name = f"Stanford PTB 3.4.1 (Java {java_scorers.java_version()})"
        return _score(
            references, hypotheses, java_scorers.tokenize_official, name, with_java_scores
        )
    return _score(references, hypotheses, tokenize_simple, "simple (Python)", with_java_scores)


def has_official_tokenizer() -> bool:
    """Whether pycocoevalcap (whose jar is the tokenizer) and Java are both present."""
    return java_scorers.why_no_java_tools() is None


def one_line(caption: str) -> str:
    """All Unicode white space collapsed: one more line would shift every later caption by one."""
    return " ".join(caption.split())


def tokenize_simple(captions: Sequence[str]) -> list[list[str]]:
    """Close to Stanford's PTB tokenizer, lower-cased, without its 17 punctuation tokens."""
    lines = []
    for caption in captions:
        tokens: list[str] = []
        for word in TOKEN.findall(one_line(caption).lower().replace("’", "'")):
            tokens += SPLIT_WORDS.get(word, word).split()
        kept = (BRACKETS.get(token, token) for token in tokens if token not in DROPPED)
        lines.append([token for token in kept if token != '"'])
    return lines


def _score(
    references: References,
    hypotheses: Hypotheses,
    tokenize: Tokenize,
    tokenizer: str,
    with_java_scores: bool,
) -> CaptionScores:
    ids = sorted(references)
    flat = [one_line(caption) for image_id in ids for caption in references[image_id]]
    flat += [one_line(hypotheses[image_id]) for image_id in ids]
    tokenized = iter(tokenize(flat))
    refs = [[next(tokenized) for _ in references[image_id]] for image_id in ids]
    hyps = [next(tokenized) for _ in ids]
    cider = [100 * score for score in cider_d(refs, hyps)]
    rouge = [100 * rouge_l(r, h) for r, h in zip(refs, hyps, strict=True)]
    is_official = tokenize is not tokenize_simple
    return CaptionScores(
        suffix="" if is_official else "_simple",
        tokenizer=tokenizer,
        cider=sum(cider) / len(ids),
        cider_by_image=dict(zip(ids, cider, strict=True)),
        bleu=tuple(100 * score for score in bleu(refs, hyps)),
        rouge_l=sum(rouge) / len(ids),
        rouge_l_by_image=dict(zip(ids, rouge, strict=True)),
        **(_java_scores(ids, refs, hyps) if with_java_scores else {}),
    )


def _java_scores(ids: list[str], refs: list[list[list[str]]], hyps: list[list[str]]) -> dict:
    """METEOR and SPICE, each where it can run; a score that cannot is a reason, not a zero."""
    scores: dict = {"absent": {}}
    if why := java_scorers.why_no_java_tools():
        scores["absent"]["METEOR"] = why
    else:
        scores["meteor"] = 100 * java_scorers.meteor(refs, hyps)[-1]
    if why := java_scorers.why_no_spice():
        scores["absent"]["SPICE"] = why
        return scores
    by_image = [100 * f for f in java_scorers.spice(refs, hyps)]
    scores["spice_by_image"] = dict(zip(ids, by_image, strict=True))
    scores["spice"] = sum(by_image) / len(ids)
    return scores

"""Scores of gold records and answers in the same order: metrics, standard errors, baselines.

Nothing here reads a file or knows a model: `mllm eval score` brings both sides.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evals import scoring
from evals.api import CandidateScore
from evals.captions import CaptionScores, score_captions
from evals.layouts.captions import CaptionRecord
from evals.layouts.hateful_memes import Meme
from evals.layouts.vqa import VqaRecord, commonest
from evals.layouts.websrc import WebRecord
from evals.okvqa_stems import Stemmer
from evals.scoring import binomial_se, bootstrap_se
from evals.uncertainty import mean_se
from mllm.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A score in its published unit.

    Args:
        value: None where it is undefined or could not be computed; `reason` says why.
        se: Its standard error; None where there is none.
    """

    value: float | None
    se: float | None = None
    reason: str = ""

    def row(self) -> dict[str, Any]:
        reason = {"reason": self.reason} if self.reason else {}
        return {"value": self.value, "se": self.se, **reason}


@dataclass(frozen=True)
class Scores:
    """What `mllm eval score` prints and writes.

    Args:
        n: How many images or questions, whose name is `unit`.
        metrics: The headline first.
        baselines: Name to metric to value: what can be had without seeing a picture.
        groups: Name of a grouping to group to its value and n.
        settings: Which tokenizer, match or threshold was used.
    """

    n: int
    unit: str
    metrics: dict[str, Metric]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    groups: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        metrics = {name: metric.row() for name, metric in self.metrics.items()}
        rest = {"baselines": self.baselines, "groups": self.groups, "settings": self.settings}
        return {"n": self.n, "unit": self.unit, "metrics": metrics, **rest}


def finite(value: float) -> float | None:
    """None for the NaN of a standard error that has too few values."""
    return None if math.isnan(value) else value


def most_common(counts: Counter[str]) -> str:
    """The commonest text; of equals the first by alphabet, whatever the files' order."""
    return min(counts, key=lambda text: (-counts[text], text))


# ----------------------------------------------------------------------------------------------
# Captions


def caption_scores(
    records: Sequence[CaptionRecord], captions: Sequence[str], with_java_scores: bool = True
) -> Scores:
    """CIDEr, BLEU, ROUGE-L and, where they can run, METEOR and SPICE.

    The baseline is the pictures' own first captions, dealt round so that each gets another's.
    """
    references = {record.image_id: list(record.captions) for record in records}
    ids = list(references)
    scores = score_captions(references, dict(zip(ids, captions, strict=True)), with_java_scores)
    metrics = _caption_metrics(scores)
    baselines = {}
    if len(ids) > 1:
        exchanged = score_captions(references, dealt_round(records))
        headline = next(iter(metrics))
        baselines["another picture's caption"] = {headline: round(exchanged.cider, 4)}
    num_empty = sum(not caption.strip() for caption in captions)
    settings = {"tokenizer": scores.tokenizer, "empty captions": str(num_empty)}
    return Scores(len(ids), "images", metrics, baselines, settings=settings)


def _caption_metrics(scores: CaptionScores) -> dict[str, Metric]:
    cider_se = finite(bootstrap_se(list(scores.cider_by_image.values())))
    rouge_se = finite(mean_se(list(scores.rouge_l_by_image.values())))
    is_official = not scores.suffix
    metrics = {
        "CIDEr" if is_official else "cider_d_simple": Metric(round(scores.cider, 4), cider_se)
    }
    for order, value in enumerate(scores.bleu, start=1):
        name = f"BLEU-{order}" if is_official else f"bleu_{order}_simple"
        metrics[name] = Metric(round(value, 4))
    name = "ROUGE-L" if is_official else "rouge_l_simple"
    metrics[name] = Metric(round(scores.rouge_l, 4), rouge_se)
    if scores.meteor is not None:
        metrics["METEOR"] = Metric(round(scores.meteor, 4))
    if scores.spice is not None:
        se = finite(mean_se(list(scores.spice_by_image.values())))
        unparsed = "SPICE gave no score for an image" if math.isnan(scores.spice) else ""
        metrics["SPICE"] = Metric(finite(round(scores.spice, 4)), se, unparsed)
    metrics |= {name: Metric(None, reason=why) for name, why in scores.absent.items()}
    return metrics


def dealt_round(records: Sequence[CaptionRecord]) -> dict[str, str]:
    """The first caption of the next picture in a seeded order: never the picture's own."""
    order = np.random.default_rng(0).permutation(len(records))
    return {
        records[i].image_id: records[j].captions[0]
        for i, j in zip(order, np.roll(order, 1), strict=True)
    }


# ----------------------------------------------------------------------------------------------
# Visual questions


def vqa_scores(
    records: Sequence[VqaRecord],
    answers: Sequence[str],
    constant: str | None = None,
    okvqa_match: str | None = None,
) -> Scores:
    """VQA accuracy in both modes, by answer type and question type.

    Args:
        records: With answers: a test part cannot be scored here.
        answers: What the model said, in the records' order.
        constant: The answer of the constant baseline; None is the commonest gold answer.
        okvqa_match: `raw` or `stem` for OK-VQA, whose answers are there twice.
    """
    bare = [record.question_id for record in records if not record.answers]
    if bare:
        raise UserError(
            f"question {bare[0]} has no gold answers: only the server can score a test part"
        )
    humans = [record.answers for record in records]
    settings = {"left out": "one human by index"}
    if okvqa_match is not None:
        humans, answers = _okvqa(records, answers, okvqa_match)
        settings["okvqa match"] = okvqa_match
    settings["empty answers"] = str(sum(not answer.strip() for answer in answers))
    by_mode = {
        name: [
            100 * scoring.vqa_accuracy(answer, row, mode)
            for answer, row in zip(answers, humans, strict=True)
        ]
        for name, mode in (("vqa_acc", "official"), ("vqa_acc_always", "always"))
    }
    images = [record.image_id for record in records]
    metrics = {
        name: Metric(_mean(values), finite(mean_se(values, images)))
        for name, values in by_mode.items()
    }
    groups = {
        key: _grouped(by_mode["vqa_acc"], [getattr(record, key) for record in records])
        for key in ("answer_type", "question_type")
        if any(getattr(record, key) for record in records)
    }
    return Scores(
        len(records),
        "questions",
        metrics,
        _vqa_baselines(records, humans, constant),
        groups,
        settings,
    )


def _mean(values: Sequence[float]) -> float:
    """Two places, as the official code rounds."""
    return round(math.fsum(values) / len(values), 2)


def _grouped(values: Sequence[float], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for value, name in zip(values, names, strict=True):
        groups[name].append(value)
    return {name: {"value": _mean(groups[name]), "n": len(groups[name])} for name in sorted(groups)}


def _vqa_baselines(
    records: Sequence[VqaRecord], humans: Sequence[tuple[str, ...]], constant: str | None
) -> dict[str, dict[str, float]]:
    golds = [commonest(row) for row in humans]
    if constant is None:
        constant = most_common(Counter(golds))
    baselines = {f"always {constant!r}": _constant(humans, [constant] * len(humans))}
    types = [record.question_type for record in records]
    if any(types):
        by_type: dict[str, Counter[str]] = defaultdict(Counter)
        for name, gold in zip(types, golds, strict=True):
            by_type[name][gold] += 1
        priors = [most_common(by_type[name]) for name in types]
        baselines["commonest of its question type"] = _constant(humans, priors)
    return baselines


def _constant(humans: Sequence[tuple[str, ...]], answers: Sequence[str]) -> dict[str, float]:
    return {
        "vqa_acc": _mean(
            [100 * scoring.vqa_accuracy(a, h) for a, h in zip(answers, humans, strict=True)]
        )
    }


def _okvqa(
    records: Sequence[VqaRecord], answers: Sequence[str], match: str
) -> tuple[list[tuple[str, ...]], Sequence[str]]:
    """The answers of humans and model that are compared."""
    if match == "stem":
        stem = Stemmer(records)
        return [record.answers for record in records], [stem(answer) for answer in answers]
    bare = [record.question_id for record in records if not record.raw_answers]
    if bare:
        raise UserError(
            f'question {bare[0]}: has no "raw_answer"; are these OK-VQA\'s annotations?'
        )
    return [record.raw_answers for record in records], answers


# ----------------------------------------------------------------------------------------------
# Web pages, memes, ranked candidates, labels


def websrc_scores(records: Sequence[WebRecord], answers: Sequence[str]) -> Scores:
    """Exact match and token F1, questions clustered by page."""
    golds = [record.answer for record in records]
    pages = [str(record.html_path) for record in records]
    constant = most_common(Counter(golds))
    measures: dict[str, Callable[[str, str], float]] = {
        "EM": scoring.exact_match,
        "F1": scoring.token_f1,
    }
    metrics, baseline = {}, {}
    for name, measure in measures.items():
        values = [100 * measure(a, gold) for a, gold in zip(answers, golds, strict=True)]
        metrics[name] = Metric(round(sum(values) / len(values), 4), finite(mean_se(values, pages)))
        always = [100 * measure(constant, gold) for gold in golds]
        baseline[name] = round(sum(always) / len(always), 4)
    num_empty = sum(not answer.strip() for answer in answers)
    settings = {"empty answers": str(num_empty), "left out": "POS, which needs a predicted tag"}
    return Scores(
        len(golds), "questions", metrics, {f"always {constant!r}": baseline}, settings=settings
    )


def meme_scores(memes: Sequence[Meme], scores: Sequence[float], threshold: float) -> Scores:
    """ROC AUC and accuracy.

    Args:
        scores: Higher for hateful: a probability, or a difference of log-likelihoods.
        threshold: Above it a meme is called hateful: 0.5 of a probability, 0 of a difference.
    """
    unlabelled = [meme.id for meme in memes if meme.label is None]
    if unlabelled:
        raise UserError(
            f"meme {unlabelled[0]} has no label: only the server can score that file; "
            "score dev_seen.jsonl"
        )
    labels = [bool(meme.label) for meme in memes]
    n, share = len(labels), sum(labels) / len(labels)
    area = scoring.roc_auc(labels, scores)
    if area is None:
        auc = Metric(None, reason=f"all {n} labels are {int(labels[0])}: no pair to compare")
    else:
        auc = Metric(round(100 * area, 4), finite(100 * scoring.roc_auc_se(labels, scores)))
    right = (
        sum((score > threshold) == label for score, label in zip(scores, labels, strict=True)) / n
    )
    metrics = {"ROC AUC": auc, "accuracy": _share(right, n)}
    baselines = {
        "chance": {"ROC AUC": 50.0, "accuracy": 50.0},
        "always the commoner label": {"accuracy": round(100 * max(share, 1 - share), 4)},
    }
    ties = n - len(set(scores))
    settings = {"hateful": f"score > {threshold:g}", "scores that tie": str(ties)}
    return Scores(n, "memes", metrics, baselines, settings=settings)


def _share(share: float, n: int) -> Metric:
    se = finite(binomial_se(share, n))
    return Metric(round(100 * share, 4), None if se is None else 100 * se)


def ranking_scores(answers: Sequence[Sequence[CandidateScore]], golds: Sequence[int]) -> Scores:
    """Accuracy under every norm that the rows allow.

    Args:
        answers: The candidates of each query.
        golds: Index of the right one.
    """
    shares = scoring.accuracy_by_norm(answers, golds)
    headline = ["token", *(norm for norm in shares if norm != "token")]
    metrics = {f"accuracy ({norm})": _share(shares[norm], len(golds)) for norm in headline}
    texts = [row[gold].text.strip() for row, gold in zip(answers, golds, strict=True)]
    chance = 100 * sum(1 / len(row) for row in answers) / len(answers)
    constant = most_common(Counter(texts))
    count = texts.count(constant)
    baselines = {"chance": dict.fromkeys(metrics, round(chance, 4))}
    if count > 1:
        always = round(100 * count / len(texts), 4)
        baselines[f"always {constant!r}"] = dict.fromkeys(metrics, always)
    settings = {"ties": "the first candidate"}
    if scoring.UNCOND not in shares:
        settings["uncond"] = "not computed: the rows have no ll_uncond"
    return Scores(len(golds), "queries", metrics, baselines, settings=settings)


def label_scores(golds: Sequence[str], answers: Sequence[str]) -> Scores:
    """Accuracy and macro-F1 of class labels, such as ImageNet's."""
    n = len(golds)
    right = sum(gold == answer for gold, answer in zip(golds, answers, strict=True)) / n
    metrics = {
        "accuracy": _share(right, n),
        "macro-F1": Metric(round(100 * scoring.macro_f1(golds, answers), 4)),
    }
    counts = Counter(golds)
    constant = most_common(counts)
    count = counts[constant]
    baselines = {
        f"chance of {len(counts)} classes": {"accuracy": round(100 / len(counts), 4)},
        f"always {constant!r}": {"accuracy": round(100 * count / n, 4)},
    }
    return Scores(n, "queries", metrics, baselines)

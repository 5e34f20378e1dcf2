"""The eight language sets as prompts and candidates, in two styles that give different numbers.

`kosmos` is the closest public code of KOSMOS-1's team (microsoft/LMOps, structured_prompting): no
newline inside an example. `lm_eval` are the strings of lm-evaluation-harness 0.4.13.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from evals.layouts.language import (
    BoolQ,
    CommitmentBank,
    Copa,
    HellaSwag,
    Piqa,
    Sample,
    StoryCloze,
    Winograd,
    Winogrande,
)
from evals.options import LanguageStyle

POSSESSIVES = ("my", "his", "her", "our", "their")
SENTENCE_STARTS = ("A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their")


@dataclass(frozen=True)
class Asked:
    """A prompt and what is ranked after it.

    Args:
        prompt: Without a shot and without a candidate.
        candidates: Without their joining space.
        gold: The right one's place.
        rest: Of partial scoring: each candidate continues the prompt and this, the same after each,
            is scored. None where the candidates themselves are.
    """

    prompt: str
    candidates: tuple[str, ...]
    gold: int
    rest: str | None = None


def ask(sample: Sample, style: LanguageStyle) -> Asked:
    """What `style` makes of a sample."""
    asked = STYLES[style](sample)
    if style == "lm_eval":
        return asked
    candidates = tuple(map(one_line, asked.candidates))
    return Asked(one_line(asked.prompt), candidates, asked.gold, asked.rest)


def one_line(text: str) -> str:
    """Line breaks as spaces."""
    return re.sub(r"\s*[\r\n]\s*", " ", text)


def _kosmos(sample: Sample) -> Asked:
    match sample:
        case StoryCloze() | Winograd() | Winogrande():
            return _shared(sample)
        case HellaSwag():
            return Asked(sample.ctx.strip(), _stripped(sample.endings), sample.label)
        case Piqa():
            return Asked(sample.goal.strip(), _stripped(sample.solutions), sample.label)
        case BoolQ():
            prompt = f"Passage: {sample.passage} Question: {sample.question}? Answer:"
            return Asked(prompt, ("No", "Yes"), sample.label)
        case CommitmentBank():
            prompt = (
                f"{sample.premise} Question: {sample.hypothesis}. True, False, or Neither? Answer:"
            )
            return Asked(prompt, ("True", "False", "Neither"), sample.label)
        case Copa():
            word = {"cause": "because", "effect": "so"}[sample.asks_for]
            prompt = f"{sample.premise.strip().removesuffix('.')} {word}"
            return Asked(prompt, _lowered(sample.choices), sample.label)


def _lm_eval(sample: Sample) -> Asked:
    match sample:
        case StoryCloze() | Winograd() | Winogrande():
            asked = _shared(sample)
            if isinstance(sample, Winograd):  # its YAML leaves the space before the rest there
                return Asked(asked.prompt, asked.candidates, asked.gold, f" {asked.rest}")
            return asked
        case HellaSwag():
            query = f"{sample.activity}: {sample.ctx_a} {sample.ctx_b.capitalize()}"
            endings = tuple(map(without_brackets, sample.endings))
            return Asked(without_brackets(query), endings, sample.label)
        case Piqa():
            return Asked(f"Question: {sample.goal}\nAnswer:", sample.solutions, sample.label)
        case BoolQ():
            prompt = f"{sample.passage}\nQuestion: {sample.question}?\nAnswer:"
            return Asked(prompt, ("no", "yes"), sample.label)
        case CommitmentBank():
            question = f"Question: {sample.hypothesis}. True, False, or Neither?"
            prompt = f"{sample.premise}\n{question}\nAnswer:"
            return Asked(prompt, ("True", "False", "Neither"), sample.label)
        case Copa():
            word = {"cause": "because", "effect": "therefore"}[sample.asks_for]
            # The last character goes whatever it is, and the choices have a space of their own
            # besides the joining one.
            choices = tuple(f" {choice}" for choice in _lowered(sample.choices))
            return Asked(f"{sample.premise.strip()[:-1]} {word}", choices, sample.label)


STYLES: dict[LanguageStyle, Callable[[Sample], Asked]] = {"kosmos": _kosmos, "lm_eval": _lm_eval}


def _shared(sample: StoryCloze | Winograd | Winogrande) -> Asked:
    """Sets that both styles ask alike."""
    match sample:
        case StoryCloze():
            return Asked(" ".join(sample.sentences), sample.endings, sample.label)
        case Winogrande():
            before, after = sample.sentence.split("_")
            return Asked(before, sample.options, sample.label, after.strip())
        case Winograd():
            # Cut before double spaces go, since the place of the pronoun counts them.
            before = sample.text[: sample.pronoun_loc].replace("  ", " ")
            after = sample.text[sample.pronoun_loc + len(sample.pronoun) :].replace("  ", " ")
            options = tuple(_fitted(option, sample) for option in sample.options)
            return Asked(before, options, sample.label, after.strip())


def _fitted(option: str, sample: Winograd) -> str:
    """An option in the pronoun's place: with `'s` for a possessive, in lower case within a
    sentence."""
    if sample.pronoun.lower() in POSSESSIVES:
        option += "'s"
    first = option.split()[0]
    starts_sentence = sample.text[sample.pronoun_loc - 2] == "."
    if not starts_sentence and first in SENTENCE_STARTS:
        return option.replace(first, first.lower())
    return option


def _stripped(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts)


def _lowered(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Each with its first letter in lower case."""
    return tuple(text[0].lower() + text[1:] for text in texts)


def without_brackets(text: str) -> str:
    """HellaSwag's WikiHow text without the marks such as [step] that its release left in."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

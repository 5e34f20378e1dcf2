"""What a user may choose about every task: prompts, decoding, norms. A task reads what it knows."""

from dataclasses import dataclass
from typing import Literal, get_args

PromptStyle = Literal["kosmos", "openflamingo", "idefics"]
LanguageStyle = Literal["kosmos", "lm_eval"]
ShownAnswer = Literal["majority", "first"]
Match = Literal["raw", "stem"]
Constraint = Literal["trie", "rank", "none"]
PROMPT_STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)
LANGUAGE_STYLES: tuple[LanguageStyle, ...] = get_args(LanguageStyle)
SHOWN_ANSWERS: tuple[ShownAnswer, ...] = get_args(ShownAnswer)
MATCHES: tuple[Match, ...] = get_args(Match)
CONSTRAINTS: tuple[Constraint, ...] = get_args(Constraint)
# Of a cell: `own` are those that a task brings.
CONTROLS = ("blind", "no_picture", "permuted", "own")


@dataclass(frozen=True)
class TaskOptions:
    """Choices that hold for a whole command; None leaves a task's own default.

    Args:
        split: Of the demo's sets.
        prompt_style: Of captions, VQA and HatefulMemes: the paper's, or a peer's, whose published
            scores depend on it.
        language_style: Of the language tasks.
        norm: Headline norm of ranking tasks.
        stops: Further strings that end an answer.
        shown_answer: Which of ten human answers an exemplar shows.
        okvqa_match: Whether OK-VQA compares answers as typed or stemmed.
        constraint: How an answer is held to a list of names: by a trie while decoding, by ranking
            all names, or not at all.
        skip_missing: Queries whose picture is missing are left out and counted.
    """

    split: str = "final"
    prompt_style: PromptStyle = "kosmos"
    language_style: LanguageStyle = "kosmos"
    norm: str | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    length_penalty: float | None = None
    no_repeat_ngram: int | None = None
    stops: tuple[str, ...] = ()
    shown_answer: ShownAnswer = "majority"
    okvqa_match: Match = "raw"
    constraint: Constraint | None = None
    skip_missing: bool = False

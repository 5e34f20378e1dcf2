"""Filters on a record's text that count characters and words: length, tags, language, spam."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import regex
from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep

from corpora.pipeline.judge import Judge
from mllm.errors import UserError

if TYPE_CHECKING:
    from corpora.pipeline.filters import FilterOptions

# CC12M replaced names of people by <PERSON>; other sets have <URL>, <USER>, <START_OF...>.
TAG = regex.compile(r"<[A-Z][A-Z_]+>")
LETTERS = regex.compile(r"\p{L}+")
WORD = regex.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# A picture with its skin tone and joiners is one; the signs of copyright and trade are none.
EMOJI = regex.compile(
    r"(?V1)(?:\p{Regional_Indicator}{2}|[\p{Extended_Pictographic}--[©®™]]"
    r"(?:\p{Emoji_Modifier}|\uFE0F|\u200D\p{Extended_Pictographic})*)"
)
HASHTAG = regex.compile(r"(?<!\w)#\w*\p{L}\w*")
URL = regex.compile(r"(?:https?://|www\.)\S+", regex.IGNORECASE)

# Frequent English words that are not frequent in other languages written in Latin letters (a, in,
# an, on, so, was and the like are).
_FREQUENT = """
    the of and to that is for it with his be by this had not are but from have they which you were
    her all she there would their we been when who more if out what up into than them can only
    other its some could these two then my any our your about after over where how because
"""
STOP_WORDS = frozenset(_FREQUENT.split())


class TextRules(Judge):
    """Counts characters and words, and drops by the first rule that a text breaks."""

    name = "text"

    def __init__(self, options: "FilterOptions", drops_dir: str | Path) -> None:
        super().__init__(drops_dir)
        self.rules = _rules(options)

    def judge(self, record: Record) -> str | None:
        return next((reason for rule in self.rules if (reason := rule(record.text))), None)


def steps(options: "FilterOptions", drops_dir: str | Path) -> list[PipelineStep]:
    """One step with every rule that is on."""
    return [TextRules(options, drops_dir)] if _rules(options) else []


Rule = Callable[[str], str | None]


def _rules(o: "FilterOptions") -> list[Rule]:
    rules: list[tuple[bool, Rule]] = [
        (o.min_chars > 0 or o.max_chars > 0, partial(_chars, low=o.min_chars, high=o.max_chars)),
        (o.min_words > 0 or o.max_words > 0, partial(_words, low=o.min_words, high=o.max_words)),
        (o.drop_tags, _tags),
        (o.max_run > 0, partial(_run, high=o.max_run)),
        (o.max_emoji > 0, partial(_per_word, "emoji", EMOJI, o.max_emoji)),
        (o.max_hashtags > 0, partial(_per_word, "hashtags", HASHTAG, o.max_hashtags)),
        (o.max_urls > 0, partial(_per_word, "URLs", URL, o.max_urls)),
        (o.max_repeated_lines > 0, partial(_repeated_lines, high=o.max_repeated_lines)),
        (o.min_script_share > 0, partial(_script, script=o.script, low=o.min_script_share)),
        (o.min_stop_words > 0, partial(_english, low=o.min_stop_words, least=o.language_words)),
    ]
    return [rule for is_on, rule in rules if is_on]


def _chars(text: str, low: int, high: int) -> str | None:
    if len(text) < low:
        return f"under {low} characters"
    return f"over {high} characters" if 0 < high < len(text) else None


def _words(text: str, low: int, high: int) -> str | None:
    count = len(text.split())
    if count < low:
        return f"under {low} words"
    return f"over {high} words" if 0 < high < count else None


def _tags(text: str) -> str | None:
    return "placeholder tag" if TAG.search(text) else None


def _run(text: str, high: int) -> str | None:
    # Spaces and lines of dashes are layout.
    return "a character repeated" if regex.search(rf"([^\s\-=_*.])\1{{{high},}}", text) else None


def _per_word(what: str, pattern: regex.Pattern, high: float, text: str) -> str | None:
    count = len(pattern.findall(text))
    return f"too many {what}" if count and count > high * len(text.split()) else None


def _repeated_lines(text: str, high: float) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = len(lines) - len(set(lines))
    return "repeated lines" if repeated > high * len(lines) else None


def _script(text: str, script: str, low: float) -> str | None:
    letters = sum(map(len, LETTERS.findall(text)))
    own = sum(map(len, script_pattern(script).findall(text)))
    return f"not in {script} letters" if own < low * letters else None


def _english(text: str, low: float, least: int) -> str | None:
    words = [word.lower() for word in WORD.findall(text)]
    if len(words) < least:
        return None
    known = sum(word in STOP_WORDS for word in words)
    return "not English by its stop words" if known < low * len(words) else None


def script_pattern(script: str) -> regex.Pattern:
    """Matches letters of a script in a row. `regex` keeps what it has compiled."""
    try:
        return regex.compile(rf"(?V1)[\p{{L}}&&\p{{Script={script}}}]+")
    except regex.error:
        raise UserError(
            f"script: Unicode knows no script {script!r}; Latin, Cyrillic, Greek, ..."
        ) from None

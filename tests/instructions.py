"""Conversations about coloured squares, as `mllm corpora import instruct` would write them."""

import random
from collections.abc import Iterator

from corpora.document import Document, ImageSegment, Segment, TextSegment, Turn
from tests.conftest import COLOURS, PLACES, square


def instruction_documents(num: int, *, with_pictures: bool = True) -> Iterator[Document]:
    """One to three questions and answers, half of them after a system's turn.

    Args:
        with_pictures: a square in the first question, which the answers tell of; else the
            questions name it.
    """
    draws = random.Random(num)
    for i in range(num):
        colour, place = draws.choice(list(COLOURS)), draws.choice(PLACES)
        asked: list[tuple[str, str]] = [
            ("what colour is the square?", colour),
            ("where is it?", f"at the {place}"),
            ("say its colour twice", f"{colour} {colour}"),
        ]
        if not with_pictures:
            asked = [(f"{question} ({colour}, {place})", answer) for question, answer in asked]
        segments: list[Segment] = []
        turns = []
        if i % 2:
            segments.append(TextSegment("Be brief.", is_scored=False))
            turns.append(Turn("system", 1))
        for number, (question, answer) in enumerate(asked[: draws.randint(1, 3)]):
            has_picture = with_pictures and number == 0
            if has_picture:
                segments.append(square(colour, place))
            segments.append(TextSegment(question, is_scored=False))
            segments.append(TextSegment(answer))
            turns += [Turn("user", 1 + has_picture), Turn("assistant", 1)]
        yield Document(f"instruct{i:04d}", tuple(segments), turns=tuple(turns))


def answers_of(document: Document) -> list[str]:
    """What the assistant says, turn by turn."""
    answers = []
    rest = iter(document.segments)
    for role, number in document.turns:
        said = [next(rest) for _ in range(number)]
        texts = [s.text for s in said if not isinstance(s, ImageSegment)]
        if role == "assistant":
            answers.append("".join(texts))
    return answers

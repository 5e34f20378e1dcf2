"""Miniatures of the demo's further evaluation sets: what their modules say of a sample."""

from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, Segment, TextSegment
from tests.evals.conftest import COLOURS, png, write

NAMES = list(COLOURS)
PAGE = "Redland\nLand\nArea: 12 sq km\nState\nCapital: Rouge"


def picture(colour: str, mark: int) -> ImageSegment:
    return ImageSegment(png(COLOURS[colour], mark=mark))


def flag(key: str, i: int, mark: int) -> Document:
    name = NAMES[i % 8]
    described = i % 3 > 0
    meta = {
        "answer": name,
        "distractors": [NAMES[(i + step) % 8] for step in range(1, 5)],
        "description": f"all {name}" if described else None,
        "captions": [f"An image of the flag of {name}{f': all {name}' if described else ''}."],
    }
    return Document(key, (picture(name, mark),), meta)


def review(key: str, i: int, mark: int) -> Document:
    meta = {"answer": ("positive", "negative")[i % 2], "candidates": ["positive", "negative"]}
    return Document(key, (picture(NAMES[i % 8], mark),), meta)


def matrix(key: str, i: int, mark: int) -> Document:
    """The right candidate has the colour of the cells."""
    cells = [picture(NAMES[i % 8], mark + n) for n in range(8)]
    answer = i % 8
    others = [NAMES[(i + 1 + n) % 8] for n in range(7)]
    colours = [*others[:answer], NAMES[i % 8], *others[answer:]]
    meta = {"num_context": 8, "answer": answer, "vote": [4] * 8}
    return Document(key, (*cells, *(picture(c, mark) for c in colours)), meta)


def page(key: str, i: int, mark: int) -> Document:
    """Two questions a page."""
    meta = {
        "question": ("What is the capital of Redland?", "What is the area of Redland?")[i % 2],
        "answers": [("a red square", "12 sq km")[i % 2]],
        "page_text": PAGE,
    }
    return Document(key, (picture("red" if i < 6 else "blue", mark - i + i // 2),), meta)


def digit(key: str, i: int, mark: int) -> Document:
    meta = {
        "answer": NAMES[i % 8],
        "candidates": NAMES,
        "descriptions": [f"Like {name}." for name in NAMES],
    }
    return Document(key, (picture(NAMES[i % 8], mark),), meta)


def pair(key: str, i: int, mark: int) -> Document:
    place = i // 2 % 4 * 2
    meta = {
        "group": "object",
        "names": NAMES[place : place + 2],
        "answer": i % 2,
        "descriptions": ["warm, loud", "cool"],
    }
    return Document(key, (picture(NAMES[place + i % 2], mark),), meta)


def social(key: str, i: int, mark: int) -> Document:
    meta = {
        "context": f"Quinn {mark} ran.",
        "question": "What will Quinn want to do next?",
        "candidates": ["rest", "sing a song", "fly"],
        "answer": i % 3,
    }
    return Document(key, (TextSegment(f"Quinn {mark} ran. {meta['question']}"),), meta)


def quality(key: str, i: int, mark: int) -> Document:
    question = f"Ice {mark} melts when it is" if i % 2 else f"Does ice {mark} melt?"
    meta = {"context": "", "question": question, "candidates": ["hot", "cold"], "answer": 0}
    return Document(key, (TextSegment(question),), meta)


def episode(ways: int, key: str, i: int) -> Document:
    """Labels begin with different letters; a round shows each way once."""
    members = [NAMES[(i + way) % 8] for way in range(ways)]
    segments: list[Segment] = []
    classes = []
    for turn in range(4):
        for way in range(ways):
            place = (way + turn) % ways
            segments.append(picture(members[place], 10 * turn + 1))
            classes.append(place)
    meta: dict[str, Any] = {
        "ways": ways,
        "labels": [f"{'bdfgk'[(way + i) % 5]}ovzim" for way in range(ways)],
        "classes": classes,
        "answer": i % ways,
        "concept": members[i % ways],
    }
    return Document(key, (*segments, picture(members[i % ways], 200)), meta)


SAMPLES = {
    "flags": flag,
    "sentiment": review,
    "raven": matrix,
    "pages": page,
    "digits": digit,
    "emoji_groups": pair,
    "socialiqa": social,
    "quartz": quality,
}


def write_local_sets(root: Path) -> None:
    """Twelve samples a set; flags in all three parts."""
    for name, make in SAMPLES.items():
        for part, first in (("test", 0), ("support", 120), ("development", 60)):
            if part != "development" or name == "flags":
                documents = [make(f"{name}-{part}-{i:02d}", i, first + i) for i in range(12)]
                write(root / "eval" / f"{name}_{part}", documents)
    for name, ways in (("nway", 2), ("nway5", 5)):
        episodes = [episode(ways, f"{name}-test-{i:02d}", i) for i in range(12)]
        write(root / "eval" / f"{name}_test", episodes)

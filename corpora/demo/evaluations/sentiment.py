"""Film reviews drawn as pictures: positive or negative? Nothing but the pixels holds the words.

Folders: `sentiment_test` (snippets whose id ends in 7, the project's test split),
`sentiment_development` and `sentiment_support` (the others). Of 10,605 snippets those are taken
that twenty people on average scored 0.5 or more away from neutral. The share of each class is the
source's own, near one half.

A document: one picture, 336 x 336, black on white, the largest of four letter sizes that fits.
At 64 x 64, where the demo's model looks at it, no one can read a snippet of usual length: a score
above chance needs a model with more pixels. Its meta:

    source       "vader"
    answer       "positive" or "negative"
    candidates   ["positive", "negative"]
    score        the people's mean, -4 to 4
    text         the snippet: for controls that may read it, never for the prompt
"""

import io
import re
import tarfile
from collections.abc import Iterator

from corpora.demo.evaluations.drawing import blank, font, png, wrapped
from corpora.demo.evaluations.material import Material, Sets
from corpora.demo.packages import Wheels
from corpora.document import Document, ImageSegment

ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
MIN_SCORE = 0.5
NUM_TEST, NUM_DEVELOPMENT, NUM_SUPPORT = 1000, 400, 500
PIXELS, MARGIN = 336, 12
LETTER_SIZES = (36, 28, 22, 20)

Snippet = tuple[int, float, str]  # id, mean score, text


def sets(material: Material) -> Sets:
    rows = list(read_snippets(material.wheels))
    test = [row for row in rows if is_for_test(row[0])]
    seen = {letters(text) for _, _, text in test}
    others = [row for row in rows if not is_for_test(row[0]) and letters(row[2]) not in seen]
    chosen = material.choose(others, NUM_DEVELOPMENT + NUM_SUPPORT, "sentiment", lambda row: row[0])
    half = len(chosen) * NUM_DEVELOPMENT // (NUM_DEVELOPMENT + NUM_SUPPORT)
    plan = {
        "sentiment_test": material.choose(test, NUM_TEST, "sentiment", lambda row: row[0]),
        "sentiment_development": chosen[:half],
        "sentiment_support": chosen[half:],
    }
    return {name: [query(*row) for row in chosen] for name, chosen in plan.items()}


def is_for_test(number: int) -> bool:
    return number % 10 == 7


def letters(text: str) -> str:
    """The text without all that differs between two copies of a snippet."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def read_snippets(wheels: Wheels) -> Iterator[Snippet]:
    """The snippets with a clear score; the table lies in an archive inside the package's."""
    with tarfile.open(fileobj=io.BytesIO(wheels.read("vaderSentiment", ARCHIVE))) as archive:
        table = archive.extractfile(TABLE)
        assert table is not None
        for line in table.read().decode().splitlines():
            number, score, text = line.split("\t")
            if abs(float(score)) >= MIN_SCORE:
                yield int(number), float(score), text


def query(number: int, score: float, text: str) -> Document:
    meta = {
        "source": "vader",
        "answer": "positive" if score > 0 else "negative",
        "candidates": ["positive", "negative"],
        "score": round(score, 4),
        "text": text,
    }
    return Document(f"review-{number:05d}", (ImageSegment(draw(text)),), meta)


def draw(text: str) -> bytes:
    """The text in the largest letters that fit."""
    image, pen = blank(PIXELS, PIXELS)
    for size in LETTER_SIZES:
        lines = wrapped(text, size, PIXELS - 2 * MARGIN)
        step = size * 5 // 4
        if len(lines) * step <= PIXELS - 2 * MARGIN:
            break
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * step), line, fill=0, font=font(size))
    return png(image)

"""Drawn pages about countries, with questions whose answers stand on the page.

Folders: `pages_test`, `pages_development`, `pages_support`: by a hash of the country. The demo's
text corpus holds the World Factbook's words, so a model may know an answer without looking; the
blind control shows how often.

A document: one picture of a page, 448 x 448, black on white; at 64 x 64 no one can read it. Several
questions share a page. Its meta:

    source       "factbook"
    image        the page, for errors clustered by page: "factbook-cd"
    question     "What is the capital of Chad?"
    answers      the answer as it stands on the page: ["N'Djamena"]
    page_text    all of the page's text, line by line: the `{WebText}` of a prompt
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from corpora.demo.chance import share, shuffled
from corpora.demo.evaluations.drawing import blank, font, png
from corpora.demo.evaluations.material import Material, Sets
from corpora.demo.text import countries, country_name, plain
from corpora.document import Document, ImageSegment

PIXELS, MARGIN = 448, 14
LETTER_SIZE, TITLE_SIZE, STEP = 14, 22, 19
MAX_CHARACTERS = 34  # of a value: what stands on one line
MIN_FIELDS = 8
QUESTIONS_PER_PAGE = 4
TEST_SHARE, DEVELOPMENT_SHARE = 0.5, 0.2


@dataclass(frozen=True)
class Field:
    """One line of a page, and how one asks for it."""

    heading: str
    label: str
    path: tuple[str, ...]
    question: str


FIELDS = (
    Field("Land", "Region", ("Geography", "Map references"), "In which region of the world is {}?"),
    Field("Land", "Area", ("Geography", "Area", "total"), "What is the area of {}?"),
    Field("Land", "Borders", ("Geography", "Land boundaries", "total"),
          "How long are the land borders of {}?"),
    Field("Land", "Coastline", ("Geography", "Coastline"), "How long is the coastline of {}?"),
    Field("Land", "Highest point", ("Geography", "Elevation", "highest point"),
          "What is the highest point of {}?"),
    Field("Land", "Lowest point", ("Geography", "Elevation", "lowest point"),
          "What is the lowest point of {}?"),
    Field("People", "Population", ("People and Society", "Population", "total"),
          "What is the population of {}?"),
    Field("People", "Nationality", ("People and Society", "Nationality", "adjective"),
          "What is the adjective of nationality of {}?"),
    Field("People", "Median age", ("People and Society", "Median age", "total"),
          "What is the median age in {}?"),
    Field("People", "Growth", ("People and Society", "Population growth rate"),
          "How fast does the population of {} grow?"),
    Field("People", "Life expectancy",
          ("People and Society", "Life expectancy at birth", "total population"),
          "What is the life expectancy in {}?"),
    Field("State", "Capital", ("Government", "Capital", "name"), "What is the capital of {}?"),
    Field("State", "Colors", ("Government", "National color(s)"),
          "What are the national colors of {}?"),
    Field("State", "Parliament", ("Government", "Legislative branch", "legislative structure"),
          "What structure has the parliament of {}?"),
    Field("Economy", "Output", ("Economy", "GDP (official exchange rate)"),
          "What is the economic output of {}?"),
    Field("Economy", "Airports", ("Transportation", "Airports"), "How many airports has {}?"),
    Field("Economy", "Internet code", ("Communications", "Internet country code"),
          "What is the internet code of {}?"),
)  # fmt: skip


def sets(material: Material) -> Sets:
    found: Sets = {"pages_test": [], "pages_development": [], "pages_support": []}
    pages = list(countries(material.wheels))
    for code, sections in pages:
        name = country_name(sections)
        values = {} if name is None else read_fields(sections)
        if name is not None and len(values) >= MIN_FIELDS:
            found[part(code)].extend(_queries(code, name, values))
    return {
        name: material.choose(documents, len(documents), name, lambda document: document.key)
        for name, documents in found.items()
    }


def part(code: str) -> str:
    place = share("pages", code)
    if place < TEST_SHARE:
        return "pages_test"
    is_development = place < TEST_SHARE + DEVELOPMENT_SHARE
    return "pages_development" if is_development else "pages_support"


def read_fields(sections: dict[str, Any]) -> dict[Field, str]:
    """The fields that fit on a line; a value that stands on the page already is left out."""
    values: dict[Field, str] = {}
    for field in FIELDS:
        node: Any = sections
        for name in field.path:
            # Some keys end in a space.
            node = next((v for k, v in node.items() if k.strip() == name), {})
        value = plain(node.get("text", ""))
        value = re.sub(r"\s*\(.*?\)", "", value).strip(" ;")  # "(2025 est.)"
        is_new = not any(value in other or other in value for other in values.values())
        if 0 < len(value) <= MAX_CHARACTERS and value.lower() not in ("na", "none") and is_new:
            values[field] = value
    return values


def _queries(code: str, name: str, values: dict[Field, str]) -> Iterator[Document]:
    lines = page_lines(name, values)
    image = draw(lines)
    page = f"factbook-{code}"
    for field in shuffled(values, "asked", code, key=lambda field: field.label)[
        :QUESTIONS_PER_PAGE
    ]:
        meta = {
            "source": "factbook",
            "image": page,
            "question": field.question.format(name),
            "answers": [values[field]],
            "page_text": "\n".join(lines),
        }
        key = f"{page}-{field.label.lower().replace(' ', '-')}"
        yield Document(key, (ImageSegment(image),), meta)


def page_lines(name: str, values: dict[Field, str]) -> list[str]:
    """The title, headings and "label: value" lines."""
    lines = [name]
    heading = ""
    for field, value in values.items():
        if field.heading != heading:
            heading = field.heading
            lines.append(heading)
        lines.append(f"{field.label}: {value}")
    return lines


def draw(lines: list[str]) -> bytes:
    """The page: a title, headings in bold, labels in grey before the values."""
    image, pen = blank(PIXELS, PIXELS)
    title, *rest = lines
    pen.text((MARGIN, 8), title, fill=0, font=font(TITLE_SIZE, is_bold=True))
    pen.line((MARGIN, 38, PIXELS - MARGIN, 38), fill=0)
    for number, line in enumerate(rest):
        y = 44 + number * STEP
        label, colon, value = line.partition(": ")
        if not colon:
            pen.text((MARGIN, y), line, fill=0, font=font(LETTER_SIZE, is_bold=True))
        else:
            pen.text((MARGIN + 16, y), f"{label}:", fill=90, font=font(LETTER_SIZE))
            pen.text((MARGIN + 150, y), value, fill=0, font=font(LETTER_SIZE))
    return png(image)

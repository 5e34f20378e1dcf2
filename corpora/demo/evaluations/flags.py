"""Flags by an artist never trained on: which of five countries?

Folders: `flags_test` and `flags_development`, halves of the countries by a hash of the name, in
Noto's pictures; `flags_support`, the training vendors' pictures of all of them. The demo's mixture
trains on `flags/train`: the same flags by other artists, with their descriptions. So this asks for
"same concept, unseen artwork", as naming does, and not for flags never heard of.

A document: one picture. Its meta:

    source, vendor   "noto"; in the support "openmoji" or "twemoji"
    concept, name    "1F1F9-1F1E9", "flag: Chad"
    answer           "Chad"
    distractors      four other countries, whose flags do not look alike
    description      what the flag looks like, from the World Factbook; null where it has none
    captions         ["An image of the flag of Chad: three vertical bands ..."]: references of a
                     caption, in the words of training
"""

import io

import numpy as np
from PIL import Image

from corpora.demo.chance import in_final_half, shuffled
from corpora.demo.concepts import Concept
from corpora.demo.evaluations.material import Material, Sets
from corpora.demo.pictures import NOTO
from corpora.document import Document, ImageSegment

PREFIX = "flag: "
NUM_DISTRACTORS = 4
SIDE = 24
# Mean difference of two flags' pixels (of 255, at 24 x 24) below which they look alike: Chad and
# Romania are 5.1 apart; the nearest pair that a viewer tells apart at once is at 7.
ALIKE = 5.5

Picture = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def sets(material: Material) -> Sets:
    flags = [
        concept
        for concept in material.trained
        if concept.name.startswith(PREFIX) and (NOTO.name, concept.id) in material.pictures
    ]
    drawn = {c.id: pixels(material.pictures[NOTO.name, c.id]) for c in flags}
    found: Sets = {"flags_test": [], "flags_development": [], "flags_support": []}
    for concept in flags:
        distances = {c.id: np.abs(drawn[concept.id] - drawn[c.id]).mean() for c in flags}
        if sum(distance == 0 for distance in distances.values()) > 1:
            continue  # Norway's flag is also that of Svalbard: no one answer is right
        others = [c for c in flags if distances[c.id] >= ALIKE]
        distractors = shuffled(others, "flag", concept.name, key=lambda c: c.name)[:NUM_DISTRACTORS]
        if len(distractors) < NUM_DISTRACTORS:
            continue
        half = "flags_test" if in_final_half(concept.name) else "flags_development"
        image = material.pictures[NOTO.name, concept.id]
        found[half].append(_query(material, concept, NOTO.name, image, distractors))
        for vendor, image in material.training_pictures.get(concept.id, []):
            found["flags_support"].append(_query(material, concept, vendor, image, distractors))
    return {
        name: material.choose(documents, len(documents), name, lambda document: document.key)
        for name, documents in found.items()
    }


def pixels(image: bytes) -> Picture:
    """A picture on white as floats (24 x 24 x 3), 0 to 255."""
    drawn = Image.open(io.BytesIO(image)).convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    page.alpha_composite(drawn)
    return np.asarray(page.convert("RGB").resize((SIDE, SIDE)), dtype=np.float64)


def _query(
    material: Material, concept: Concept, vendor: str, image: bytes, distractors: list[Concept]
) -> Document:
    description = material.flag_descriptions.get(concept.id)
    meta = {
        "source": vendor,
        "vendor": vendor,
        "concept": concept.id,
        "name": concept.name,
        "answer": concept.name.removeprefix(PREFIX),
        "distractors": [other.name.removeprefix(PREFIX) for other in distractors],
        "description": description,
        "captions": [f"An image of {concept.answer}{f': {description}' if description else ''}."],
    }
    return Document(f"{vendor}-{concept.id}", (ImageSegment(image),), meta)

"""Two things that are much alike: which of two names? With descriptions, or without.

As with the paper's pairs of birds, but out of emoji: each concept is paired with the one of its
group that shares most keywords with it, and the keywords that they do not share describe them.

Folders: `emoji_groups_test` (Noto's pictures of the final half of the trained concepts, and of the
concepts never trained on), `emoji_groups_development` (of the development half) and
`emoji_groups_support` (the training vendors' pictures of the development half's pairs). The
keywords are words that some training captions hold.

A document: one picture. Its meta:

    source, vendor   "noto"; in the support "openmoji" or "twemoji"
    concept, name    of the picture
    pair             the pair's name; both of its concepts are asked
    group            what both are: "animal or plant"
    names            the two names, in one order for both queries: "grinning cat"
    answer           index of the right one, 0 or 1
    descriptions     of each in the order of the names: "cat, face, grinning"
    is_trained       whether training saw the concept (by other artists)
"""

import itertools
import re

from corpora.demo.chance import shuffled
from corpora.demo.concepts import Concept, contains
from corpora.demo.evaluations.material import Material, Sets
from corpora.demo.pictures import NOTO
from corpora.document import Document, ImageSegment

GROUP_WORDS = {
    "Activities": "game or festivity",
    "Animals & Nature": "animal or plant",
    "Food & Drink": "food or drink",
    "Objects": "object",
    "People & Body": "person or part of the body",
    "Smileys & Emotion": "smiley",
    "Travel & Places": "place or vehicle",
}
NUM_PER_SET = 500

Pair = tuple[Concept, Concept]


def sets(material: Material) -> Sets:
    naming = material.naming
    # Whole pairs, so that always guessing the first name is right for one half of the queries.
    test = _chosen(material, pairs(naming.final, material) + pairs(naming.new_concepts, material))
    development = _chosen(material, pairs(naming.development, material))
    noto = {id_: image for (vendor, id_), image in material.pictures.items() if vendor == NOTO.name}
    return {
        "emoji_groups_test": [
            _query(material, pair, place, NOTO.name, noto[pair[place].id])
            for pair in test
            for place in (0, 1)
        ],
        "emoji_groups_development": [
            _query(material, pair, place, NOTO.name, noto[pair[place].id])
            for pair in development
            for place in (0, 1)
        ],
        "emoji_groups_support": [
            _query(material, pair, place, vendor, image)
            for pair in development
            for place in (0, 1)
            for vendor, image in material.training_pictures.get(pair[place].id, [])
        ],
    }


def _chosen(material: Material, found: list[Pair]) -> list[Pair]:
    wanted = material.count(NUM_PER_SET) // 2
    return material.choose(found, wanted, "emoji groups", _pair_name)


def _pair_name(pair: Pair) -> str:
    return f"{pair[0].name} / {pair[1].name}"


def pairs(concepts: tuple[Concept, ...], material: Material) -> list[Pair]:
    """The most alike first; each concept once; both with something of its own to say."""
    usable = [
        concept
        for concept in concepts
        if concept.group in GROUP_WORDS and (NOTO.name, concept.id) in material.pictures
    ]
    alike = [
        (likeness, a, b)
        for a, b in itertools.combinations(usable, 2)
        if a.group == b.group
        and (likeness := _likeness(a, b)) > 0
        and not contains(a.name, b.name)
        and not contains(b.name, a.name)
        and material.pictures[NOTO.name, a.id] != material.pictures[NOTO.name, b.id]
        and own_words(a, b)
        and own_words(b, a)
    ]
    alike = shuffled(alike, "pairs", key=lambda found: _pair_name(found[1:]))
    taken: set[str] = set()
    chosen = []
    for _, a, b in sorted(alike, key=lambda found: -found[0]):
        if a.id not in taken and b.id not in taken:
            taken |= {a.id, b.id}
            first, second = shuffled((a, b), "order", key=lambda c: c.name)
            chosen.append((first, second))
    return chosen


def _likeness(a: Concept, b: Concept) -> float:
    words = [set(concept.keywords) | set(concept.name.split()) for concept in (a, b)]
    return len(words[0] & words[1]) / len(words[0] | words[1])


def own_words(concept: Concept, other: Concept) -> list[str]:
    """The keywords that tell a concept from another, plain words only."""
    return [
        word
        for word in concept.keywords
        if re.fullmatch(r"[A-Za-z][A-Za-z '-]+", word)
        and word not in other.keywords
        and not contains(other.name, word)
    ]


def _query(material: Material, pair: Pair, place: int, vendor: str, image: bytes) -> Document:
    concept = pair[place]
    meta = {
        "source": vendor,
        "vendor": vendor,
        "concept": concept.id,
        "name": concept.name,
        "pair": _pair_name(pair),
        "group": GROUP_WORDS[concept.group],
        "names": [other.name for other in pair],
        "answer": place,
        "descriptions": [", ".join(own_words(*order)) for order in (pair, (pair[1], pair[0]))],
        "is_trained": concept.name not in material.held_out,
    }
    return Document(f"{vendor}-{concept.id}", (ImageSegment(image),), meta)

"""Few-shot naming with invented words: only the shots say what a label means.

Folders: `nway_test` and `nway_development` (two ways), `nway5_test` and `nway5_development` (five).
Concepts that training never sees, halved between test and development by a hash of the name. The
exemplars are openmoji's and twemoji's pictures, the query is Noto's: the same thing by an artist of
whom no exemplar is. The labels are words like "tovzim" that stand nowhere in the training texts,
drawn anew for each episode; so a model that does not use its shots stays at 1 / ways.

An episode brings its own support. Two artists drew each concept: for the third and fourth
exemplar their pictures are mirrored.

A document: 4 x ways exemplar pictures, then the query picture, which is the last. The exemplars
come in four rounds, each with one of every way: the first `k * ways` pictures are the shots at k
(1, 2 or 4) per way, so that the shots of a smaller k are among those of a larger. Its meta:

    source       "noto"
    ways         2 or 5
    labels       the invented words, one a way
    classes      int[4 * ways]: which label each exemplar has, in the order of the pictures
    answer       index of the query's label
    concept      of the query; several episodes ask for one picture
    names        the true names of the ways: for controls, never for the prompt
"""

import io

from PIL import Image, ImageOps

from corpora.demo.chance import in_final_half, pick, share, shuffled
from corpora.demo.concepts import Concept
from corpora.demo.evaluations.drawing import png
from corpora.demo.evaluations.material import Material, Sets
from corpora.demo.pictures import NOTO, TRAINING_VENDORS
from corpora.document import Document, ImageSegment

NUM_ROUNDS = 4  # exemplars a way: two artists, and both mirrored
EPISODES = {2: 4, 5: 2}  # of each query picture, by the number of ways
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def sets(material: Material) -> Sets:
    usable = [
        concept
        for concept in material.naming.new_concepts
        if all(
            (vendor.name, concept.id) in material.pictures for vendor in (*TRAINING_VENDORS, NOTO)
        )
    ]
    halves = {
        "test": [concept for concept in usable if in_final_half(concept.name)],
        "development": [concept for concept in usable if not in_final_half(concept.name)],
    }
    exemplars = {concept.id: _exemplars(material, concept) for concept in usable}
    words = "\n".join(sorted(material.training_words))
    found: Sets = {}
    for ways, num_episodes in EPISODES.items():
        for half, concepts in halves.items():
            episodes = [
                _episode(material, concepts, concept, ways, number, exemplars, words)
                for concept in concepts
                for number in range(num_episodes)
                if len(concepts) >= ways
            ]
            name = f"{'nway' if ways == 2 else f'nway{ways}'}_{half}"
            found[name] = material.choose(episodes, len(episodes), name, lambda d: d.key)
    return found


def _exemplars(material: Material, concept: Concept) -> list[bytes]:
    drawn = [material.pictures[vendor.name, concept.id] for vendor in TRAINING_VENDORS]
    return [*drawn, *(_mirrored(image) for image in drawn)]


def _mirrored(image: bytes) -> bytes:
    return png(ImageOps.mirror(Image.open(io.BytesIO(image)).convert("RGBA")))


def _episode(
    material: Material,
    concepts: list[Concept],
    concept: Concept,
    ways: int,
    number: int,
    exemplars: dict[str, list[bytes]],
    words: str,
) -> Document:
    key = f"nway{ways}-{concept.id}-{number}"
    others = [other for other in concepts if other is not concept]
    others = shuffled(others, "others", key, key=lambda c: c.name)[: ways - 1]
    members = shuffled([concept, *others], "ways", key, key=lambda c: c.name)
    labels = _labels(ways, key, words)
    pictures, classes = [], []
    # Which artist comes first is drawn once for the episode: each round shows one artist only.
    rounds = [0, 1] if share("artist", key) < 0.5 else [1, 0]
    for turn in [*rounds, *(r + 2 for r in rounds)]:
        for place in shuffled(range(ways), "round", key, str(turn)):
            pictures.append(ImageSegment(exemplars[members[place].id][turn]))
            classes.append(place)
    meta = {
        "source": NOTO.name,
        "ways": ways,
        "labels": labels,
        "classes": classes,
        "answer": members.index(concept),
        "concept": concept.id,
        "names": [member.name for member in members],
    }
    query = ImageSegment(material.pictures[NOTO.name, concept.id])
    return Document(key, (*pictures, query), meta)


def _labels(count: int, key: str, words: str) -> list[str]:
    """Invented words that are no part of any training word, each with its own first letter."""
    labels: list[str] = []
    attempt = 0
    while len(labels) < count:
        label = _invented(key, str(attempt))
        attempt += 1
        if label not in words and label[0] not in {other[0] for other in labels}:
            labels.append(label)
    return labels


def _invented(*parts: str) -> str:
    """Two closed syllables: "tovzim"."""
    letters = (CONSONANTS, VOWELS, CONSONANTS) * 2
    return "".join(pick(kind, "label", *parts, str(i)) for i, kind in enumerate(letters))

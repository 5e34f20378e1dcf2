"""Evaluation sets of naming: one picture, its name, and four other names of the same group.

The distractors are stored with the query, so that a model, the pixel neighbour and the blind
control all choose from the same five.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from corpora.demo.captions import all_captions
from corpora.demo.chance import in_final_half, shuffled
from corpora.demo.concepts import Concept, Names
from corpora.document import Document, ImageSegment

NUM_DISTRACTORS = 4


@dataclass(frozen=True)
class NamingSets:
    """Which concepts are asked where; near-duplicates are asked nowhere."""

    development: tuple[Concept, ...]
    final: tuple[Concept, ...]
    new_concepts: tuple[Concept, ...]

    @property
    def trained(self) -> tuple[Concept, ...]:
        return self.development + self.final


def split(trained: Sequence[Concept], held_out: Sequence[Concept]) -> NamingSets:
    """Halves the trained concepts by a hash of the name: one half to tune on, one to report."""
    usable = [concept for concept in trained if not concept.is_near_duplicate]
    is_final = {concept.name: in_final_half(concept.name) for concept in usable}
    return NamingSets(
        development=tuple(c for c in usable if not is_final[c.name]),
        final=tuple(c for c in usable if is_final[c.name]),
        new_concepts=tuple(c for c in held_out if not c.is_near_duplicate),
    )


def query(
    concept: Concept,
    vendor: str,
    image: bytes,
    distractors: Sequence[Concept],
    held_out: Names,
) -> Document:
    """One evaluation sample: the picture alone; everything else in its meta."""
    captions = all_captions(concept, held_out)
    meta = {
        "concept": concept.id,
        "name": concept.name,
        "answer": concept.answer,
        "group": concept.group,
        "vendor": vendor,
        "captions": captions if len(captions) > 1 else captions * 2,
        "distractors": [other.answer for other in distractors],
    }
    return Document(f"{vendor}-{concept.id}", (ImageSegment(image),), meta)


class Distractors:
    """Four other names for a concept: of its group, of another name, by hash."""

    def __init__(self, preferred: Sequence[Concept], others: Sequence[Concept] = ()) -> None:
        """
        Args:
            preferred: Taken first: the concepts of the same evaluation set, so that no answer
                stands out as the only untrained name.
            others: Taken where a group has too few.
        """
        self._tiers = [_by_group(preferred), _by_group(others)]

    def of(self, concept: Concept) -> list[Concept] | None:
        """Four concepts, or None where the group has too few names."""
        chosen: list[Concept] = []
        taken = {concept.answer.lower()}
        for tier in self._tiers:
            for other in shuffled(
                tier.get(concept.group, ()), "distractor", concept.name, key=lambda c: c.name
            ):
                if len(chosen) < NUM_DISTRACTORS and other.answer.lower() not in taken:
                    chosen.append(other)
                    taken.add(other.answer.lower())
        return chosen if len(chosen) == NUM_DISTRACTORS else None


def queries(
    concepts: Sequence[Concept],
    pictures: dict[tuple[str, str], bytes],
    vendors: Sequence[str],
    distractors: Distractors,
    held_out: Names,
) -> Iterator[Document]:
    """The queries of a set over the vendors' pictures ((vendor, concept id) to PNG)."""
    for concept in concepts:
        others = distractors.of(concept)
        for vendor in vendors:
            image = pictures.get((vendor, concept.id))
            if image is not None and others is not None:
                yield query(concept, vendor, image, others, held_out)


def _by_group(concepts: Sequence[Concept]) -> dict[str, list[Concept]]:
    groups: dict[str, list[Concept]] = {}
    for concept in concepts:
        groups.setdefault(concept.group, []).append(concept)
    return groups

"""Captions with some variety: "An image of a red apple, something to eat or drink.", by hash."""

import re

from corpora.demo.chance import share
from corpora.demo.concepts import Concept, Names

GROUP_PHRASES = {
    "Activities": "for play or a celebration",
    "Animals & Nature": "from the living world",
    "Food & Drink": "something to eat or drink",
    "Objects": "a thing to use",
    "People & Body": "about people",
    "Smileys & Emotion": "a smiley or a feeling",
    "Symbols": "a sign",
    "Travel & Places": "for places and travel",
}


def all_captions(concept: Concept, held_out: Names) -> list[str]:
    """One to four captions, the plain one first; each begins "An image of {answer}"."""
    captions = [f"An image of {concept.answer}."]
    if concept.group in GROUP_PHRASES:
        captions.append(f"An image of {concept.answer}, {GROUP_PHRASES[concept.group]}.")
    # Only plain words: the tables also hold "*", ":-)" and 1234.
    keywords = [
        word
        for word in concept.keywords
        if re.fullmatch(r"[A-Za-z][A-Za-z '-]{2,}", word) and not held_out.found_in(word)
    ]
    if keywords:
        captions.append(f"An image of {concept.answer}: {keywords[0]}.")
    if len(keywords) > 1:
        captions.append(f"An image of {concept.answer}: {keywords[-1]}, {keywords[0]}.")
    return captions


def caption(concept: Concept, vendor: str, held_out: Names) -> str:
    """The caption of one vendor's picture: the plain one for half of them, by hash."""
    plain, *others = all_captions(concept, held_out)
    place = share("caption", vendor, concept.id)
    if place < 0.5 or not others:
        return plain
    return others[int((place - 0.5) * 2 * len(others))]

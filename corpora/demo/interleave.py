"""Pictures set beside the words that name them, in real text.

MMC4's idea (a picture goes where it fits the text), with an exact name in place of CLIP's
similarity: each picture stands just before the word it shows, so that it helps to predict it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from corpora.demo.articles import words
from corpora.demo.chance import pick, share
from corpora.demo.concepts import Concept, Names
from corpora.document import Document, ImageSegment, Segment, TextSegment

GROUPS = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities")
MAX_IMAGES = 5

# A word after a space that no sentence or line ends before.
MID_SENTENCE_WORD = re.compile(r"(?<=[a-z0-9,;)½¼⅓¾%] )[a-z]+")
WORD_GOES_ON = re.compile(r"[\w'’-]")

# Words that in running text often mean something else than the picture shows.
STOP_LIST = words(
    """
    school house houses turkey china office bank church home key keyboard light bulb battery bell
    bow button card chair chart clip coin compass cross crown date drum duck ear eye fan file film
    fire fly fog folder pump game die glass glasses goal heart ice label leaf link lock map mask
    memo mirror mouse net note package palette paper party pen pill pin plate plug pool pot post
    present ring rock satellite scale scroll seat shield signal spiral sponge star station stop
    store sun sunset sunrise target test tube thread tick tie top train watch water wave well wheel
    wind window world comet ticket worm moon droplet bubbles fishing chick bug coat cooking pick
    bear rose seal cricket bat knot metro foot wing gear brick file herb custard football rugby
    """
)

# Plain words for what the tables name with a qualifier.
ALIASES = {
    "apple": "red apple",
    "beach": "beach with umbrella",
    "bee": "honeybee",
    "bowl": "bowl with spoon",
    "bridge": "bridge at night",
    "coffee": "hot beverage",
    "corn": "ear of corn",
    "frying pan": "cooking",
    "ginger": "ginger root",
    "honey": "honey pot",
    "island": "desert island",
    "knife": "kitchen knife",
    "lettuce": "leafy green",
    "meat": "cut of meat",
    "milk": "glass of milk",
    "peas": "pea pod",
    "peppers": "bell pepper",
    "chilli": "hot pepper",
    "chili": "hot pepper",
    "rain": "cloud with rain",
    "rice": "cooked rice",
    "salad": "green salad",
    "saucepan": "pot of food",
    "sheep": "ewe",
    "snow": "snowflake",
    "swords": "crossed swords",
    "tea": "teacup without handle",
    "tree": "deciduous tree",
    "trees": "deciduous tree",
    "wine": "wine glass",
}


class Interleaver:
    """Finds names in text and puts pictures there."""

    def __init__(
        self,
        concepts: Sequence[Concept],
        pictures: Mapping[str, Sequence[tuple[str, bytes]]],
        held_out: Names,
    ) -> None:
        """
        Args:
            concepts: Those that may be shown; held-out ones are not among them.
            pictures: Concept id to (vendor, PNG) for each training picture.
            held_out: Names that no picture may stand for, whatever it shows.
        """
        self._pictures = pictures
        shown = {c.name: c for c in concepts if c.group in GROUPS and c.id in pictures}
        names = {
            form: concept
            for name, concept in shown.items()
            if re.fullmatch(r"[a-z]{3,}(?:[ -][a-z]+)*", name) and name not in STOP_LIST
            for form in _forms(name)
        }
        aliases = {alias: shown[name] for alias, name in ALIASES.items() if name in shown}
        self._concepts = {
            word: concept
            for word, concept in (aliases | names).items()
            if held_out.found_in(word) is None
        }
        # By their first word, longest first: "hot dog" before "hot".
        self._by_first_word: dict[str, list[str]] = {}
        for form in sorted(self._concepts, key=lambda form: (-len(form), form)):
            self._by_first_word.setdefault(re.split("[ -]", form)[0], []).append(form)

    def find(self, text: str) -> Iterator[tuple[int, Concept]]:
        """(offset, concept) of each lower-case name in mid-sentence, in order."""
        for match in MID_SENTENCE_WORD.finditer(text):
            for form in self._by_first_word.get(match[0], ()):
                if text.startswith(form, match.start()) and not WORD_GOES_ON.match(
                    text, match.start() + len(form)
                ):
                    yield match.start(), self._concepts[form]
                    break

    def interleave(self, document: Document) -> Document | None:
        """The text with up to five pictures in it, each concept once; None where none fits.

        Half of the documents with a single picture stay plain text, so that pictures do not
        mostly come alone.
        """
        (segment,) = document.segments
        assert isinstance(segment, TextSegment)
        places: list[tuple[int, Concept]] = []
        for place, concept in self.find(segment.text):
            if all(concept != other for _, other in places):
                places.append((place - 1, concept))  # the space goes with the word
            if len(places) == MAX_IMAGES:
                break
        if not places or (len(places) == 1 and share("single", document.key) < 0.5):
            return None
        segments: list[Segment] = []
        shown = []
        begin = 0
        for place, concept in places:
            vendor, image = pick(self._pictures[concept.id], "vendor", document.key, concept.id)
            segments += [TextSegment(segment.text[begin:place]), ImageSegment(image)]
            shown.append({"concept": concept.id, "name": concept.name, "vendor": vendor})
            begin = place
        segments.append(TextSegment(segment.text[begin:]))
        return Document(document.key, tuple(segments), document.meta | {"shown": shown})


def _forms(name: str) -> list[str]:
    """A name and its plural."""
    if name.endswith("s"):
        return [name]
    if name.endswith(("o", "x", "ch", "sh")):
        return [name, name + "es"]
    if name.endswith("y") and name[-2] not in "aeiou":
        return [name, name[:-1] + "ies"]
    return [name, name + "s"]

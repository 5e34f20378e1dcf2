"""easy-vqa: pictures of one coloured shape, with questions; its official split is kept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from corpora.demo.chance import shuffled
from corpora.demo.packages import Wheels
from corpora.document import Document, ImageSegment, Segment, TextSegment

COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
NAMES = frozenset(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
TURNS_PER_DOCUMENT = 4


@dataclass(frozen=True)
class ShapePicture:
    """One picture, what it shows, and its questions with their answers."""

    number: int
    image: bytes
    colour: str | None  # None where no question gives it away
    shape: str | None
    questions: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str | None:
        """ "blue circle", or None where the questions do not tell."""
        return f"{self.colour} {self.shape}" if self.colour and self.shape else None

    @property
    def possible_names(self) -> set[str]:
        """Every name that its questions leave open."""
        colours = (self.colour,) if self.colour else COLOURS
        shapes = (self.shape,) if self.shape else SHAPES
        return {f"{colour} {shape}" for colour in colours for shape in shapes}

    @property
    def key(self) -> str:
        return f"easy-vqa-{self.number:05d}"


def read_pictures(wheels: Wheels, split: str) -> Iterator[ShapePicture]:
    """The pictures of a split ("train" or "test") in order of their numbers."""
    folder = f"easy_vqa/data/{split}"
    questions: dict[int, list[tuple[str, str]]] = {}
    for question, answer, number in json.loads(wheels.read("easy-vqa", f"{folder}/questions.json")):
        questions.setdefault(number, []).append((question, answer))
    for number, turns in sorted(questions.items()):
        colour, shape = true_words(turns, COLOURS), true_words(turns, SHAPES)
        image = wheels.read("easy-vqa", f"{folder}/images/{number}.png")
        yield ShapePicture(number, image, colour, shape, tuple(turns))


def true_words(turns: list[tuple[str, str]], words: tuple[str, ...]) -> str | None:
    """Which of the words is true of a picture, as far as its questions tell."""
    for question, answer in turns:
        if answer in words:
            return answer
        asked = question.rstrip("?").split()
        if asked[0] == "what":
            # "what is the blue shape?" gives the colour away.
            named = [word for word in words if word in asked]
            if named:
                return named[0]
            continue
        is_negated = "not" in asked or "no" in asked
        if (answer == "yes") != is_negated:
            named = [word for word in words if word in asked]
            if named:
                return named[0]
    return None


def pair(picture: ShapePicture) -> Document:
    """The picture with a caption out of its own answers."""
    meta = {"source": "easy-vqa", "name": picture.name}
    assert picture.name is not None
    caption = TextSegment(f"An image of a {picture.name}.")
    return Document(picture.key, (ImageSegment(picture.image), caption), meta)


def dialogues(picture: ShapePicture) -> Iterator[Document]:
    """The picture with up to four questions at a time, loss on the answers only."""
    turns = shuffled(picture.questions, "turns", picture.key)
    for start in range(0, len(turns), TURNS_PER_DOCUMENT):
        segments: list[Segment] = [ImageSegment(picture.image)]
        for number, (question, answer) in enumerate(turns[start : start + TURNS_PER_DOCUMENT]):
            joint = "\n" if number else ""
            prompt = f"{joint}Question: {question} Answer:"
            segments += [TextSegment(prompt, is_scored=False), TextSegment(f" {answer}")]
        part = start // TURNS_PER_DOCUMENT
        yield Document(f"{picture.key}-{part}", tuple(segments), {"source": "easy-vqa"})


def queries(picture: ShapePicture) -> Iterator[Document]:
    """Evaluation samples: the picture, and one question with its answer in the meta."""
    for number, (question, answer) in enumerate(picture.questions):
        meta = {"question": question, "answer": answer, "name": picture.name}
        yield Document(f"{picture.key}-{number:02d}", (ImageSegment(picture.image),), meta)

"""Which of a few names that are much alike, with or without descriptions of what they stand for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, Segment, TextSegment
from evals.api import Baselines, Exemplar, Model, Query
from evals.options import TaskOptions
from evals.tasks.local_set import LocalSet
from evals.tasks.neighbour import neighbour_baselines
from evals.tasks.ranking import RankTask
from evals.tasks.sources import Source

DESCRIBED = "Question:what is the name of {group} in the picture? Answer:"
NAMED = "Question:what is the name of {group} in the picture, {names}? Answer:"
Sample = tuple[str, list[str], list[str], str]
DESCRIPTION = "Description of {name}: {text}"


class LookAlikeTask(RankTask):
    """Ranks the names after KOSMOS-1's prompt for pairs of birds.

    With descriptions, these stand before the picture, a line each; without, the names stand in the
    question.
    """

    is_described = False

    @property
    def settings(self) -> dict[str, Any]:
        if self.is_described:
            return {"prompt": DESCRIBED, "description": DESCRIPTION, "norm": self.norm}
        return {"prompt": NAMED, "shot": f"{NAMED} {{answer}}", "norm": self.norm}

    def question(
        self, image: ImageSegment, group: str, names: Sequence[str], descriptions: Sequence[str]
    ) -> tuple[Segment, ...]:
        if not self.is_described:
            listed = f"{', '.join(names[:-1])} or {names[-1]}"
            return image, TextSegment(NAMED.format(group=group, names=listed))
        lines = [
            DESCRIPTION.format(name=name, text=text) + "\n"
            for name, text in zip(names, descriptions, strict=True)
        ]
        return TextSegment("".join(lines)), image, TextSegment(DESCRIBED.format(group=group))


class LocalLookAlikes(LocalSet, LookAlikeTask):
    """A set whose samples say their names, descriptions and answer, each set in its own fields."""

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.use_norm(options.norm)

    def sample(self, source: Source, document: Document) -> Sample:
        """Group, names, descriptions, the right name."""
        raise NotImplementedError

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        group, names, descriptions, answer = self.sample(self.source, document)
        segments = self.question(ImageSegment(document.images[0]), group, names, descriptions)
        return Query(query_id, segments, answer, document.meta | {"candidates": tuple(names)})

    def show(self, document: Document) -> Exemplar:
        group, names, descriptions, answer = self.sample(self.support_source, document)
        question = self.question(ImageSegment(document.images[0]), group, names, descriptions)
        return Exemplar(document.key, question, f" {answer}")


class Digits(LocalLookAlikes):
    """Which of ten digits."""

    name = set_name = "digits"

    def sample(self, source: Source, document: Document) -> Sample:
        fields = ("candidates", "descriptions", "answer")
        names, descriptions, answer = source.meta(document, *fields)
        return "digit", names, descriptions, answer

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        return neighbour_baselines(queries, self.support_source.dir, model)


class DigitsDescribed(Digits):
    """Which of ten digits, after a sentence about the shape of each."""

    name = "digits_described"
    takes_shots = False
    is_described = True


class EmojiGroups(LocalLookAlikes):
    """Which of two emoji of one group that share most of their keywords."""

    name = set_name = "emoji_groups"

    def sample(self, source: Source, document: Document) -> Sample:
        fields = ("group", "names", "descriptions", "answer")
        group, names, descriptions, answer = source.meta(document, *fields)
        return group, names, descriptions, names[answer]


class EmojiGroupsDescribed(EmojiGroups):
    """Which of two emoji, after the keywords that tell each from the other."""

    name = "emoji_groups_described"
    takes_shots = False
    is_described = True

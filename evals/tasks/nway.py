"""Few-shot naming with invented words, over concepts never trained on."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, TextSegment
from evals.api import Exemplar, Prompt, Query, Support
from evals.controls import redealt
from evals.options import TaskOptions
from evals.tasks.local_set import LocalSet
from evals.tasks.ranking import RankTask
from mllm.errors import UserError

PROMPT = "An image of"
ANSWER = "a {label}"


class Nway(LocalSet, RankTask):
    """Ranks the labels of an episode for its query picture.

    An episode is its own support set: rounds of one exemplar a way, so that at k = ways each label
    was shown once. Without shots nothing can be known.
    """

    ways: int
    is_conditioned = False  # what an invented word is worth after nothing says nothing of it

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.use_norm(options.norm)
        # Several draws and seeds read one episode.
        self._episode = lru_cache(maxsize=64)(self.source.document)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": PROMPT, "shot": f"{PROMPT} {ANSWER}.", "norm": self.norm}

    def query(self, query_id: str) -> Query:
        document = self._episode(query_id)
        labels, answer, concept = self.source.meta(document, "labels", "answer", "concept")
        candidates = tuple(ANSWER.format(label=label) for label in labels)
        segments = (ImageSegment(document.images[-1]), TextSegment(PROMPT))
        meta = {"candidates": candidates, "concept": concept}
        return Query(query_id, segments, candidates[answer], meta)

    def gold_class(self, query: Query) -> str:
        return query.meta["concept"]

    def support(self) -> Support:
        def read(exemplar_id: str) -> Exemplar:
            raise UserError(f"{self.name}: {exemplar_id} is an exemplar of one episode only")

        return Support((), self.data_fingerprint, read, own=self._own, round_size=self.ways)

    def _own(self, query: Query) -> Support:
        document = self._episode(query.id)
        exemplars = {shot.id: shot for shot in self._exemplars(document)}
        ids = tuple(exemplars)
        return Support(ids, self.data_fingerprint, exemplars.__getitem__, round_size=self.ways)

    def _exemplars(self, document: Document) -> list[Exemplar]:
        labels, classes = self.source.meta(document, "labels", "classes")
        return [
            Exemplar(
                f"{document.key}/{number:02d}",
                (ImageSegment(picture), TextSegment(PROMPT)),
                f" {ANSWER.format(label=labels[way])}.",
            )
            for number, (picture, way) in enumerate(zip(document.images[:-1], classes, strict=True))
        ]

    def permuted(self, prompt: Prompt, key: str) -> Prompt:
        return redealt(prompt, key)


class Nway2(Nway):
    """Two labels."""

    name = "nway2"
    set_name = "nway"
    ways = 2


class Nway5(Nway):
    """Five labels."""

    name = set_name = "nway5"
    ways = 5

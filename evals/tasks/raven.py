"""Raven's matrices: which picture goes on, by how sure the model is that it is correct."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from corpora.document import ImageSegment, Segment, TextSegment
from evals.api import Prompt, Query, Request, VariantRequest
from evals.tasks.ranking import RankTask

NUMBERS = {3: "three", 4: "four", 8: "eight"}
BEFORE_CANDIDATE = "The following image is:"
AFTER_CANDIDATE = "Is it correct?"
CONFIRMED = " Yes"


class MatrixTask(RankTask):
    """Ranks candidate pictures by the log-likelihood of ` Yes`, as KOSMOS-1 does; ` No` plays no
    part.

    All norms agree, since what is scored is the same for every candidate. In the rows a candidate
    is called by its number.
    """

    norm = "sum"
    is_conditioned = False

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "prompt": f"Here are {{number}} images:{{cells}}{BEFORE_CANDIDATE}{{candidate}}"
            f"{AFTER_CANDIDATE}",
            "scored": CONFIRMED,
        }

    def asked(
        self,
        key: str,
        cells: Sequence[ImageSegment],
        candidates: Sequence[ImageSegment],
        answer: int,
    ) -> Query:
        names = tuple(f"image {number}" for number in range(len(candidates)))
        start = TextSegment(f"Here are {NUMBERS[len(cells)]} images:")
        segments: tuple[Segment, ...] = (start, *cells, TextSegment(BEFORE_CANDIDATE))
        meta = {"candidates": names, "images": tuple(candidates)}
        return Query(key, segments, names[answer], meta)

    def request(self, prompt: Prompt) -> Request:
        images = prompt.query.meta["images"]
        endings: list[tuple[Segment, ...]] = [(i, TextSegment(AFTER_CANDIDATE)) for i in images]
        return VariantRequest(prompt, tuple(endings), (CONFIRMED,) * len(images))

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        names = query.meta["candidates"]
        scores = [
            replace(score, text=name) for score, name in zip(responses[-1], names, strict=True)
        ]
        return super().row(query, [scores])

    def controls(self) -> dict[str, Callable[[Prompt], Prompt]]:
        """`no_context`: the candidates alone, which must not tell the answer."""
        return {
            "no_context": lambda prompt: prompt.with_query((TextSegment(BEFORE_CANDIDATE),)),
        }

    def gold_class(self, query: Query) -> str:
        return query.id  # the number of the right candidate means nothing

"""Sizes and colours of things, asked without a picture."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from corpora.document import TextSegment
from evals.api import (
    Baselines,
    Measured,
    Model,
    Prompt,
    Query,
    RankRequest,
    Request,
    Response,
    Support,
)
from evals.layouts.facts import (
    COLOURS,
    Coloured,
    load_color_terms,
    load_memory_color,
    load_relative_size,
)
from evals.layouts.release import files_fingerprint, lacking
from evals.options import TaskOptions
from evals.tasks.ranking import RankTask, hits_under, norms_of
from evals.uncertainty import mean_se
from mllm.errors import UserError

SIZE_PROMPT = "Is {first} larger than {second}?"
COLOUR_PROMPT = "The color of {thing} is"
ANSWERS = ("Yes", "No")


class _Facts(RankTask):
    """A file without a training part."""

    has_images = False
    split = "all"
    size: int
    file: Path
    num_read: int

    @property
    def data_fingerprint(self) -> str:
        return files_fingerprint([self.file])

    def support(self) -> Support:
        raise UserError(f"{self.name} has no training part; use --shots 0")

    def problems(self) -> dict[str, int]:
        return lacking(self.size, self.num_read)


class _Colours(_Facts):
    """Ranks all eleven colours, also those that no thing of the set has."""

    load: Callable[[Path], tuple[list[Coloured], Path]]

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.use_norm(options.norm)
        things, self.file = type(self).load(folder)
        self.things = {thing.id: thing for thing in things}
        self.num_read = len(things)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": COLOUR_PROMPT, "candidates": list(COLOURS), "norm": self.norm}

    def ids(self) -> list[str]:
        return list(self.things)

    def query(self, query_id: str) -> Query:
        thing = self.things[query_id]
        prompt = COLOUR_PROMPT.format(thing=thing.thing)
        return Query(query_id, (TextSegment(prompt),), thing.colour, {"candidates": COLOURS})


class MemoryColor(_Colours):
    name = corpus_name = "memory_color"
    size = 109
    load = staticmethod(load_memory_color)


class ColorTerms(_Colours):
    name = corpus_name = "color_terms"
    size = 52
    load = staticmethod(load_color_terms)


class RelativeSize(_Facts):
    """Each pair in both orders: the set has the bigger thing first throughout, and a model that
    always says yes would have all of it right.

    A row is a pair: 1.0 where both answers are right, 0.5 where one is.
    """

    name = corpus_name = "relative_size"
    size = 486

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.use_norm(options.norm)
        pairs, self.file = load_relative_size(folder)
        self.pairs = {pair.id: pair for pair in pairs}
        self.num_read = len(pairs)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": SIZE_PROMPT, "orders": "both, their mean", "norm": self.norm}

    def ids(self) -> list[str]:
        return list(self.pairs)

    def query(self, query_id: str) -> Query:
        pair = self.pairs[query_id]
        meta = {"candidates": ANSWERS, "swapped": _ask(pair.smaller, pair.bigger)}
        return Query(query_id, _ask(pair.bigger, pair.smaller), "Yes", meta)

    def follow_up(self, prompt: Prompt, responses: Sequence[Response]) -> Request | None:
        """The same pair in the other order, after the first."""
        if len(responses) == 2:
            return None
        swapped = prompt.with_query(prompt.query.meta["swapped"])
        return RankRequest(swapped, tuple(f" {answer}" for answer in ANSWERS), self.is_conditioned)

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        row = super().row(query, responses[:1])
        swapped = super().row(replace(query, gold="No"), responses[1:])
        score = (row["score"] + swapped["score"]) / 2
        return row | {"score": score, "swapped": swapped}

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        """Mean over pairs of both orders, under each norm; the orders stand beside it."""
        turned = [row["swapped"] for row in rows]
        extra: dict[str, Any] = {}
        for norm in norms_of(rows):
            orders = hits_under(rows, norm), hits_under(turned, norm)
            extra[f"accuracy_{norm}"] = _percent([*orders[0], *orders[1]])
            if norm == self.norm:
                extra["accuracy_bigger_first"] = _percent(orders[0])
                extra["accuracy_smaller_first"] = _percent(orders[1])
        scores = self.row_scores(rows)
        return Measured(100 * sum(scores) / len(scores), 100 * mean_se(scores), extra)

    def row_scores(self, rows: list[dict[str, Any]]) -> list[float]:
        hits = hits_under(rows, self.norm), hits_under([r["swapped"] for r in rows], self.norm)
        return [sum(pair) / 2 for pair in zip(*hits, strict=True)]

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        notes = {"majority": "any constant answer is right in one of the two orders"}
        return Baselines(chance=50.0, majority=50.0, notes=notes)


def _ask(first: str, second: str) -> tuple[TextSegment, ...]:
    return (TextSegment(SIZE_PROMPT.format(first=first, second=second)),)


def _percent(hits: list[float]) -> float:
    return round(100 * sum(hits) / len(hits), 4)

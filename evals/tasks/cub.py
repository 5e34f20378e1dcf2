"""Which of two look-alikes: the paper's pairs, with and without a description of each."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.document import Segment, TextSegment
from evals.api import (
    Baselines,
    GenerateRequest,
    ImageFile,
    Measured,
    Model,
    Prompt,
    Query,
    Request,
    Support,
)
from evals.layouts.cub import Bird, Pair, load
from evals.layouts.images import existing_images
from evals.layouts.release import files_fingerprint, listing_fingerprint
from evals.options import TaskOptions
from evals.tasks.answering import AnswerTask, by_group
from evals.tasks.imagenet import LONGEST_NAME
from evals.tasks.ranking import RankTask, closed_set_baselines
from mllm.errors import UserError
from mllm.files import fingerprint

DESCRIPTION = "Description of {name}: {text}"
DESCRIBED = "Question:what is the name of {group} in the picture? Answer:"
NAMED = "Question:what is the name of {group} in the picture, {first} or {second}? Answer:"


class _Pairs:
    """Queries about the pictures of every pair."""

    split = "pairs"
    corpus_name = "cub"
    is_described = False
    name: str

    def __init__(self, folder: Path, options: TaskOptions) -> None:
        self.folder_path = folder
        pairs, self.files = load(folder)
        if self.is_described:
            for pair in pairs:
                if pair.descriptions is None:
                    raise UserError(
                        f"{folder / 'pairs.jsonl'}: group {pair.group} has no descriptions, which "
                        f"{self.name} shows; add a line with them (`images` may be left out for "
                        f"woodpecker)"
                    )
        birds, self.num_missing = existing_images(
            [bird for pair in pairs for bird in pair.birds], options.skip_missing
        )
        pair_of = {bird.id: pair for pair in pairs for bird in pair.birds}
        self.asked = {bird.id: (pair_of[bird.id], bird) for bird in birds}

    @property
    def prompt_settings(self) -> dict[str, Any]:
        if self.is_described:
            return {"prompt": DESCRIBED, "description": DESCRIPTION}
        return {"prompt": NAMED}

    @cached_property
    def data_fingerprint(self) -> str:
        pictures = [bird.image_path for _, bird in self.asked.values()]
        return fingerprint(
            [files_fingerprint(self.files), listing_fingerprint(self.folder_path, pictures)]
        )

    def ids(self) -> list[str]:
        return list(self.asked)

    def problems(self) -> dict[str, int]:
        return {"whose picture is missing": self.num_missing} if self.num_missing else {}

    def query(self, query_id: str) -> Query:
        pair, bird = self.asked[query_id]
        meta = {"candidates": pair.names, "group": pair.group}
        return Query(query_id, self._segments(pair, bird), pair.names[bird.place], meta)

    def _segments(self, pair: Pair, bird: Bird) -> tuple[Segment, ...]:
        picture = ImageFile(bird.image_path)
        if not self.is_described:
            first, second = pair.names
            question = NAMED.format(group=pair.group, first=first, second=second)
            return picture, TextSegment(question)
        assert pair.descriptions is not None
        lines = [
            DESCRIPTION.format(name=name, text=text)
            for name, text in zip(pair.names, pair.descriptions, strict=True)
        ]
        question = DESCRIBED.format(group=pair.group)
        return TextSegment("\n".join(lines)), picture, TextSegment(question)

    def support(self) -> Support:
        raise UserError(f"{self.name} is asked without shots; use --shots 0")

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        return closed_set_baselines(queries)

    def gold_class(self, query: Query) -> str:
        return query.gold


class CubRank(_Pairs, RankTask):
    """The likelier of the two names."""

    name = "cub_pairs"

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(folder, options)
        self.use_norm(options.norm)

    @property
    def settings(self) -> dict[str, Any]:
        return self.prompt_settings | {"constraint": "rank", "norm": self.norm}

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        return super().row(query, responses) | {"group": query.meta["group"]}

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        measured = super().measure(rows)
        for name, value in by_group(rows, lambda row: row["group"]).items():
            measured.extra[f"accuracy_{name}"] = value
        return measured


class CubAnswer(_Pairs, AnswerTask):
    """A greedy answer, right if it holds the right name and not the other one.

    With `--constraint trie` the answer is one of the two names.
    """

    name = "cub_pairs"
    metric = "accuracy"
    max_new_tokens = 16

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(folder, options)
        self.is_held = options.constraint == "trie"
        if self.is_held:
            self.max_new_tokens = LONGEST_NAME
        self.decode_by(options)

    @property
    def settings(self) -> dict[str, Any]:
        constraint = {"constraint": "trie" if self.is_held else "none"}
        return self.prompt_settings | constraint | self.decoding

    def request(self, prompt: Prompt) -> Request:
        names = prompt.query.meta["candidates"]
        return GenerateRequest(
            prompt,
            self.max_new_tokens,
            self.num_beams,
            self.length_penalty,
            self.no_repeat_ngram,
            tuple(f" {name}" for name in names) if self.is_held else None,
        )

    def judge(self, answer: str, query: Query) -> float:
        said = [name for name in query.meta["candidates"] if name.casefold() in answer.casefold()]
        return float(said == [query.gold])


class DescribedRank(CubRank):
    """With a description of each bird before the picture."""

    name = "cub_pairs_described"
    is_described = True


class DescribedAnswer(CubAnswer):
    """With a description of each bird before the picture."""

    name = "cub_pairs_described"
    is_described = True


def make_pairs(folder: Path, options: TaskOptions) -> CubRank | CubAnswer:
    """By `--constraint`; ranking where none is named."""
    return (CubRank if options.constraint in (None, "rank") else CubAnswer)(folder, options)


def make_described(folder: Path, options: TaskOptions) -> DescribedRank | DescribedAnswer:
    kind = DescribedRank if options.constraint in (None, "rank") else DescribedAnswer
    return kind(folder, options)

"""ImageNet's classes by name: said freely, or held to the list of names."""

from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.document import TextSegment
from evals.api import Baselines, GenerateRequest, ImageFile, Model, Prompt, Query, Request, Support
from evals.layouts.imagenet import load
from evals.layouts.release import lacking, listing_fingerprint
from evals.options import TaskOptions
from evals.tasks.answering import AnswerTask
from evals.tasks.ranking import RankTask, closed_set_baselines
from mllm.errors import UserError

PROMPT = "The photo of the"
SIZE = 50_000
# No name of the curated list has more tokens, even spelled in bytes.
LONGEST_NAME = 64


class _Photos:
    """The validation photos. Two classes may have one name: either is then right."""

    split = "val"
    corpus_name = "imagenet"

    def __init__(self, folder: Path, options: TaskOptions) -> None:
        self.folder_path = folder
        self.data = load(folder, options.skip_missing)
        self.photos = {photo.id: photo for photo in self.data.photos}

    @property
    def common_settings(self) -> dict[str, Any]:
        return {"prompt": PROMPT, "names_sha256": self.data.names_sha256}

    @cached_property
    def data_fingerprint(self) -> str:
        return listing_fingerprint(self.folder_path, (p.image_path for p in self.data.photos))

    def ids(self) -> list[str]:
        return list(self.photos)

    def problems(self) -> dict[str, int]:
        missing = self.data.num_missing
        found = len(self.photos) + missing
        return ({"whose picture is missing": missing} if missing else {}) | lacking(SIZE, found)

    def query(self, query_id: str) -> Query:
        photo = self.photos[query_id]
        segments = (ImageFile(photo.image_path), TextSegment(PROMPT))
        return Query(query_id, segments, self.data.names[photo.label], self.meta)

    @property
    def meta(self) -> dict[str, Any]:
        return {"candidates": self.data.names}

    def support(self) -> Support:
        raise UserError("imagenet is asked without shots; use --shots 0")

    def gold_class(self, query: Query) -> str:
        return query.gold


class ImageNet(_Photos, AnswerTask):
    """The name as the model says it: right if it is the class's name and nothing else."""

    name = "imagenet"
    metric = "accuracy"
    num_beams = 2
    max_new_tokens = 16

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(folder, options)
        self.decode_by(options)

    @property
    def settings(self) -> dict[str, Any]:
        return self.common_settings | self.decoding

    def judge(self, answer: str, query: Query) -> float:
        return float(answer.strip() == query.gold)

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """A uniform guess among the names, and always the commonest of them."""
        return closed_set_baselines(queries)


class ImageNetTrie(ImageNet):
    """The same, each token held to what goes on in some name. Beam 2 is no exact argmax."""

    name = "imagenet_constrained"
    max_new_tokens = LONGEST_NAME

    @cached_property
    def _choices(self) -> tuple[str, ...]:
        return tuple(f" {name}" for name in dict.fromkeys(self.data.names))

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"constraint": "trie"}

    def request(self, prompt: Prompt) -> Request:
        return GenerateRequest(
            prompt,
            LONGEST_NAME,
            self.num_beams,
            self.length_penalty,
            self.no_repeat_ngram,
            self._choices,
        )


class ImageNetRank(_Photos, RankTask):
    """The likeliest of all names, exactly."""

    name = "imagenet_constrained"
    is_conditioned = False  # a thousand names after an empty prompt would be asked for one norm

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(folder, options)
        self.use_norm(options.norm)

    @property
    def settings(self) -> dict[str, Any]:
        return self.common_settings | {"constraint": "rank", "norm": self.norm}

    @cached_property
    def _distinct(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.data.names))

    @property
    def meta(self) -> dict[str, Any]:
        return {"candidates": self._distinct}


def make_constrained(folder: Path, options: TaskOptions) -> ImageNetTrie | ImageNetRank:
    """By `--constraint`, a trie where none is named."""
    match options.constraint:
        case "rank":
            return ImageNetRank(folder, options)
        case "none":
            raise UserError("--constraint none: imagenet_constrained has one; ask for imagenet")
    return ImageNetTrie(folder, options)

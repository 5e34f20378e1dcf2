"""The words of an evaluation, and the narrow door to a model.

A task turns samples into `Query`s and strings into scores; it never sees a tensor or a rank. A
model answers `RankRequest`s and `GenerateRequest`s; it never sees a gold answer.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from corpora.document import ImageSegment, Segment, TextSegment
from mllm.candidate import CandidateScore as CandidateScore

Separator = Literal["eos", "newline", "none"]
Resize = Literal["crop", "squash"]
SEPARATORS: tuple[Separator, ...] = ("eos", "newline", "none")


@dataclass(frozen=True)
class Query:
    """One question of a task.

    Args:
        id: The sample's key; unique within a task and split.
        segments: What is asked, in order, without shots and without the answer.
        gold: The right answer, without a joining space.
        meta: What the task needs to make requests and rows (candidates, references).
    """

    id: str
    segments: tuple[Segment, ...]
    gold: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[bytes, ...]:
        return tuple(s.data for s in self.segments if isinstance(s, ImageSegment))


@dataclass(frozen=True)
class Exemplar:
    """A query of the support set with its answer shown."""

    id: str
    segments: tuple[Segment, ...]

    @property
    def images(self) -> tuple[bytes, ...]:
        return tuple(s.data for s in self.segments if isinstance(s, ImageSegment))


@dataclass(frozen=True)
class Prompt:
    """Exemplars in order, then the query: one document divided by `separator`.

    Args:
        separator: What stands after each exemplar: `eos` is `</s>`, as in joined training rows.
    """

    shots: tuple[Exemplar, ...]
    query: Query
    separator: Separator = "eos"

    @property
    def num_images(self) -> int:
        return sum(len(shot.images) for shot in self.shots) + len(self.query.images)

    def sha(self) -> str:
        """16 hex digits over every text, picture and separator, in order."""
        digest = hashlib.sha256(self.separator.encode())
        for segments in (*(shot.segments for shot in self.shots), self.query.segments):
            digest.update(b"\x1e")
            for segment in segments:
                match segment:
                    case TextSegment(text):
                        digest.update(b"T" + hashlib.sha256(text.encode()).digest())
                    case ImageSegment(data):
                        digest.update(b"I" + hashlib.sha256(data).digest())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class RankRequest:
    """Score each candidate after the prompt. A candidate brings its joining space."""

    prompt: Prompt
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class GenerateRequest:
    """Continue the prompt until `</s>` or `max_new_tokens`; `num_beams` 1 is greedy."""

    prompt: Prompt
    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True)
class RollingRequest:
    """Log-likelihood of the query's text, every token once, the first conditioned on `<s>`."""

    prompt: Prompt


Request = RankRequest | GenerateRequest | RollingRequest


@dataclass(frozen=True)
class Generated:
    """Raw text; `is_capped` when it ended at `max_new_tokens` rather than at `</s>`."""

    text: str
    num_tokens: int
    is_capped: bool


@dataclass(frozen=True)
class TextScore:
    """Log-likelihood of a whole text (nats, summed), its tokens and its UTF-8 bytes."""

    ll: float
    num_tokens: int
    num_bytes: int


Response = list[CandidateScore] | Generated | TextScore


class Model(Protocol):
    """What an evaluation may ask of a model. Answers come in request order."""

    fingerprint: str  # 16 hex over weights, configuration and tokenizer
    device: str  # such as `cpu`: with dtype, what moves the last digits of a score
    dtype: str
    seq_len: int  # positions
    max_positions: int | None  # of a prompt with its answer: seq_len, or None for any number
    num_latents: int  # positions of an image between `<image>` and `</image>`
    image_size: int  # pixels
    resize: Resize
    vocab_size: int

    def loglikelihood(self, requests: Sequence[RankRequest]) -> list[list[CandidateScore]]: ...

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]: ...

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScore]: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without `<s>`; for lengths and for token baselines."""
        ...


@dataclass(frozen=True)
class Measured:
    """A metric over all rows of one run, and what else the rows say.

    Args:
        score: The headline, in the task's unit.
        se: Its standard error, in the same unit.
        extra: Further figures by name: other norms, BLEU-4, counts of capped and empty answers.
    """

    score: float
    se: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Baselines:
    """What can be scored without the model, in the task's unit; None where it has no meaning.

    Args:
        chance: A uniform guess.
        majority: The best constant answer, from the gold answers.
        others: By name, such as `pixel neighbour`.
        row_scores: For a baseline in `others`, its score on each query id, in the unit of
            `Task.row_scores`, so that model and baseline can be compared pairwise.
        notes: What the baselines were made from, for results.json.
    """

    chance: float | None = None
    majority: float | None = None
    others: dict[str, float] = field(default_factory=dict)
    row_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """Strings and pictures in, requests out; answers in, rows and numbers out."""

    name: str  # suite name in results.json
    split: str
    metric: str
    unit: str
    corpus_name: str  # folder of the evaluation corpus below DATA, such as `eval/naming_final`
    is_higher_better: bool = True
    has_images: bool = True

    @property
    def folder(self) -> str:
        return f"{self.name}_{self.split}"

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Prompt, candidates, norm, decoding: whatever changes an answer. Goes into results.json
        and into the fingerprint that resuming checks."""

    @property
    @abstractmethod
    def data_fingerprint(self) -> str:
        """Over the content of the evaluation corpus."""

    @abstractmethod
    def ids(self) -> list[str]:
        """The ids of all queries of the split."""

    @abstractmethod
    def query(self, query_id: str) -> Query: ...

    @abstractmethod
    def support(self) -> "Support":
        """The training samples that shots are drawn from."""

    @abstractmethod
    def request(self, prompt: Prompt) -> Request: ...

    @abstractmethod
    def row(self, query: Query, response: Response) -> dict[str, Any]:
        """`raw`, `answer`, `candidates`, `gold`, `score` and what the metric needs."""

    @abstractmethod
    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        """The metric, once, over all rows."""

    @abstractmethod
    def baselines(self, queries: list[Query], model: Model) -> Baselines: ...

    def row_scores(self, rows: list[dict[str, Any]]) -> list[float]:
        """The score of each row. Their mean by `row_weight` is the metric (a share, not %)."""
        return [row["score"] for row in rows]

    def row_weight(self, row: dict[str, Any]) -> float:
        return 1.0

    def gold_class(self, query: Query) -> str:
        """What a blind control must change besides the picture: the query's class, or its id
        where answers are open."""
        return query.id


@dataclass(frozen=True)
class Support:
    """A support set: exemplars by position, read only when they are drawn.

    Args:
        ids: Sorted, so that the order of shards changes nothing.
        fingerprint: Over ids and content.
    """

    ids: tuple[str, ...]
    fingerprint: str
    read: Callable[[str], Exemplar]

"""The words of an evaluation, and the narrow door to a model.

A task turns samples into `Query`s and strings into scores; it never sees a tensor or a rank. A
model answers `RankRequest`s and `GenerateRequest`s; it never sees a gold answer.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from corpora.document import ImageSegment, Segment, TextSegment
from mllm.candidate import CandidateScore as CandidateScore
from mllm.errors import UserError

Separator = Literal["eos", "newline", "blank_line", "none"]
Resize = Literal["crop", "squash"]
SEPARATORS: tuple[Separator, ...] = ("eos", "newline", "blank_line", "none")
SEPARATOR_TEXTS: dict[Separator, str] = {"newline": "\n", "blank_line": "\n\n"}


class ImageFile(ImageSegment):
    """A picture that is read from its file when it is looked at: a data set's worth of them fits
    in memory."""

    def __init__(self, path: Path) -> None:
        object.__setattr__(self, "path", path)

    path: Path

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """
        Raises:
            UserError: The file is missing or cannot be read.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read ({error.strerror}); put the picture there or pass "
                f"--skip-missing"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageFile) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"ImageFile({str(self.path)!r})"


def with_text(segments: tuple[Segment, ...], text: str) -> tuple[Segment, ...]:
    """`segments` and then `text`, as one text with the last of them if that is text."""
    if not text:
        return segments
    if segments and isinstance(segments[-1], TextSegment):
        return (*segments[:-1], TextSegment(segments[-1].text + text))
    return (*segments, TextSegment(text))


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
    """A sample of the support set with its answer shown.

    Args:
        question: What is asked, as in a query.
        answer: What stands after it, its joining space in front; the permuted control exchanges it.
    """

    id: str
    question: tuple[Segment, ...]
    answer: str = ""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Question and answer; a text at the question's end and the answer are one text."""
        return with_text(self.question, self.answer)

    @property
    def images(self) -> tuple[bytes, ...]:
        return tuple(s.data for s in self.question if isinstance(s, ImageSegment))


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
        parts = (*(shot.question for shot in self.shots), self.query.segments)
        return sum(isinstance(segment, ImageSegment) for part in parts for segment in part)

    def with_query(self, segments: tuple[Segment, ...]) -> "Prompt":
        """The same shots before other segments of the same query."""
        return replace(self, query=replace(self.query, segments=segments))

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
    """Score each candidate after the prompt. A candidate brings its joining space.

    Args:
        is_conditioned: Whether each candidate is also scored after an empty prompt, which the norm
            `uncond` subtracts.
    """

    prompt: Prompt
    candidates: tuple[str, ...]
    is_conditioned: bool = True


@dataclass(frozen=True)
class VariantRequest:
    """Score a text after each of several endings of the prompt: one `CandidateScore` an ending.

    What differs stands before the scored text: the option of a Winograd sentence, the picture of a
    Raven puzzle.

    Args:
        endings: What follows the query's own segments.
        texts: What is scored after each ending, its joining space in front.
    """

    prompt: Prompt
    endings: tuple[tuple[Segment, ...], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class GenerateRequest:
    """Continue the prompt until `</s>` or `max_new_tokens`; `num_beams` 1 is greedy.

    Args:
        no_repeat_ngram: No n-gram of this many tokens occurs twice in an answer; 0 for any.
        choices: Where given, the answer is one of these texts, each with its joining space.
    """

    prompt: Prompt
    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RollingRequest:
    """Log-likelihood of the query's text, every token once, the first conditioned on `<s>`."""

    prompt: Prompt


Request = RankRequest | VariantRequest | GenerateRequest | RollingRequest


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

    def loglikelihood(
        self, requests: Sequence[RankRequest | VariantRequest]
    ) -> list[list[CandidateScore]]: ...

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]: ...

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScore]: ...

    def image_features(self, pictures: Sequence[bytes]) -> np.ndarray:
        """float32 (N, D): the vision encoder's features of each picture, of length 1."""
        ...

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
    separator: Separator = "eos"  # between shots, where the user names none

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

    def fitted(self, prompt: Prompt, model: Model) -> Prompt:
        """The prompt as it is asked. A task that names a part which may be cut where the model has
        too few positions cuts it here and says so in its rows; of all others nothing is cut."""
        return prompt

    def follow_up(self, prompt: Prompt, responses: Sequence[Response]) -> Request | None:
        """What is asked after these responses, such as the second stage of a chain of thought."""
        return None

    def later_positions(self, model: Model) -> int:
        """Positions that a follow-up takes beyond the prompt and the first answer."""
        return 0

    @abstractmethod
    def row(self, query: Query, responses: Sequence[Response]) -> dict[str, Any]:
        """`raw`, `answer`, `candidates`, `gold`, `score` and what the metric needs.

        Args:
            responses: To `request` and to each `follow_up`, in order.
        """

    @abstractmethod
    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        """The metric, once, over all rows."""

    def further(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Figures beside the metric that are too costly to be had for every control too."""
        return {}

    def submission(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """The answers as the data set's server wants them; None where there is none."""
        return None

    @abstractmethod
    def baselines(self, queries: list[Query], model: Model) -> Baselines: ...

    def row_scores(self, rows: list[dict[str, Any]]) -> list[float] | None:
        """The score of each row. Their mean by `row_weight` is the metric (a share, not %).

        None where the metric is no mean over rows, such as AUC.
        """
        return [row["score"] for row in rows]

    def row_weight(self, row: dict[str, Any]) -> float:
        return 1.0

    def gold_class(self, query: Query) -> str:
        """What a blind control must change besides the picture: the query's class, or its id
        where answers are open."""
        return query.id

    def controls(self) -> "dict[str, Callable[[Prompt], Prompt]]":
        """Further controls by name: what each does to a prompt."""
        return {}

    def permuted(self, prompt: Prompt, key: str) -> Prompt:
        """The prompt with the shots' answers taken away from their pictures.

        Each shot shows the answer of another sample of the support set, so that answers are as
        frequent as before. A task whose answers have a meaning within one prompt alone overrides
        this.

        Args:
            key: Decides the answers together with the shot's place.
        """
        support = self.support()
        shots = []
        for place, shot in enumerate(prompt.shots):
            digest = hashlib.sha256(f"{key}\npermuted\n{place}".encode()).digest()
            other = support.ids[int.from_bytes(digest[:8], "big") % len(support.ids)]
            shots.append(replace(shot, answer=support.read(other).answer))
        return replace(prompt, shots=tuple(shots))

    def problems(self) -> dict[str, int]:
        """What was left out of the data on the user's wish, by reason, for results.json."""
        return {}


@dataclass(frozen=True)
class Support:
    """A support set: exemplars by position, read only when they are drawn.

    Args:
        ids: Sorted, so that the order of shards changes nothing.
        fingerprint: Over ids and content.
        label: The class that `--select balanced` evens out; None where that is the answer.
        own: The part of it that one query's shots are drawn from; None where that is all of it.
        round_size: The ids come in rounds of so many, one exemplar of each class in a round:
            `random` shows the rounds in turn, each in an order of its own.
    """

    ids: tuple[str, ...]
    fingerprint: str
    read: Callable[[str], Exemplar]
    label: Callable[[str], str] | None = None
    own: "Callable[[Query], Support] | None" = None
    round_size: int | None = None

"""The sentiment of a text that is drawn as a picture, at once or after a chain of thought."""

from collections.abc import Sequence
from typing import Any

from corpora.document import ImageSegment, Segment, TextSegment
from evals.api import (
    Exemplar,
    Generated,
    Measured,
    Model,
    Prompt,
    Query,
    RankRequest,
    Request,
    Response,
)
from evals.captions import one_line
from evals.tasks.answering import AnswerTask, cut
from evals.tasks.ranking import RankTask

PROMPT = "Question: what is the sentiment of the opinion? Answer:"
RATIONALE_PROMPT = "Introduce this picture in detail:"
LABELS = ("positive", "negative")


class SentimentTask(RankTask):
    """Ranks ` positive` and ` negative` after the picture and KOSMOS-1's question."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": PROMPT, "shot": f"{PROMPT} {{answer}}", "norm": self.norm}

    def asked(self, key: str, image: ImageSegment, answer: str) -> Query:
        return Query(key, _question(image), answer, {"candidates": LABELS})

    def shown(self, key: str, image: ImageSegment, answer: str) -> Exemplar:
        return Exemplar(key, _question(image), f" {answer}")


class ChainOfThought(SentimentTask, AnswerTask):
    """Describes the picture first (greedy), then ranks after picture, description and question.

    The description, a rationale, is one line of the second prompt and stands in the row.
    """

    max_new_tokens = 128

    @property
    def settings(self) -> dict[str, Any]:
        stages = {"prompt": PROMPT, "rationale_prompt": RATIONALE_PROMPT, "norm": self.norm}
        return stages | self.decoding

    def request(self, prompt: Prompt) -> Request:
        picture = prompt.query.segments[0]
        first = prompt.with_query((picture, TextSegment(RATIONALE_PROMPT)))
        return AnswerTask.request(self, first)

    def follow_up(self, prompt: Prompt, responses: Sequence[Response]) -> Request | None:
        if len(responses) == 2:
            return None
        picture = prompt.query.segments[0]
        text = f"{self.rationale(responses)} {PROMPT}".lstrip()
        second = prompt.with_query((picture, TextSegment(text)))
        return RankRequest(second, tuple(f" {label}" for label in LABELS), self.is_conditioned)

    def later_positions(self, model: Model) -> int:
        """The description is part of the second prompt, in about as many tokens as it was made of;
        the label comes after it."""
        return max(len(model.encode(f" {label}")) for label in LABELS)

    def rationale(self, responses: Sequence[Response]) -> str:
        described = responses[0]
        assert isinstance(described, Generated)
        return one_line(cut(described.text, self.stops))

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        return RankTask.row(self, query, responses) | {
            "raw": responses[0].text,
            "rationale": self.rationale(responses),
            "is_capped": responses[0].is_capped,
        }

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        measured = RankTask.measure(self, rows)
        measured.extra["num_capped_rationales"] = sum(row["is_capped"] for row in rows)
        measured.extra["num_empty_rationales"] = sum(not row["rationale"] for row in rows)
        return measured


def _question(image: ImageSegment) -> tuple[Segment, ...]:
    return image, TextSegment(PROMPT)

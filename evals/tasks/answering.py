"""Tasks whose answer is generated and held against gold."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from evals.api import GenerateRequest, Measured, Prompt, Query, Request, Task
from evals.options import TaskOptions
from evals.rows import clusters
from evals.scoring import exact_match
from evals.uncertainty import mean_se


class AnswerTask(Task):
    """Generates an answer, cuts it at the first stop string, and judges it.

    `query.meta["group"]`, where given, divides the score further in results.json.
    """

    metric = "exact_match"
    unit = "%"
    max_new_tokens = 10
    num_beams = 1
    length_penalty = 1.0
    no_repeat_ngram = 0
    stops: tuple[str, ...] = ()

    def decode_by(self, options: TaskOptions) -> None:
        """Takes over what the user chose about decoding."""
        for name in ("num_beams", "max_new_tokens", "length_penalty", "no_repeat_ngram"):
            if (chosen := getattr(options, name)) is not None:
                setattr(self, name, chosen)
        self.stops = (*self.stops, *options.stops)

    @property
    def decoding(self) -> dict[str, Any]:
        """What of `settings` says how answers are made."""
        return {
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "length_penalty": self.length_penalty,
            "no_repeat_ngram": self.no_repeat_ngram,
            "stops": list(self.stops),
        }

    def request(self, prompt: Prompt) -> Request:
        return GenerateRequest(
            prompt, self.max_new_tokens, self.num_beams, self.length_penalty, self.no_repeat_ngram
        )

    def judge(self, answer: str, query: Query) -> float:
        """The score of an answer, 0 to 1."""
        return exact_match(answer, query.gold)

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        response = responses[-1]
        answer = cut(response.text, self.stops)
        row = {
            "raw": response.text,
            "answer": answer,
            "candidates": None,
            "gold": query.gold,
            "is_capped": response.is_capped,
            "score": self.judge(answer, query),
        }
        return row | ({"group": query.meta["group"]} if "group" in query.meta else {})

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        scores = [row["score"] for row in rows]
        extra = counts(rows)
        for name, value in by_group(rows, lambda row: row.get("group")).items():
            extra[f"{self.metric}_{name}"] = value
        return Measured(
            100 * sum(scores) / len(scores), 100 * mean_se(scores, clusters(rows)), extra
        )


def cut(text: str, stops: Sequence[str]) -> str:
    """An answer up to the first stop string, without white space around it."""
    return up_to(text, stops).strip()


def up_to(text: str, stops: Sequence[str]) -> str:
    """A text up to the first stop string."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text


def counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many answers hit the cap or are empty: an untrained model does both."""
    return {
        "num_capped": sum(row["is_capped"] for row in rows),
        "num_empty": sum(not row["answer"] for row in rows),
    }


def by_group(
    rows: list[dict[str, Any]], group: Callable[[dict[str, Any]], str | None]
) -> dict[str, float]:
    """Mean score in % of the rows of each group."""
    groups = defaultdict(list)
    for row in rows:
        if (name := group(row)) is not None:
            groups[name].append(row["score"])
    return {name: round(100 * sum(x) / len(x), 4) for name, x in sorted(groups.items())}

"""Questions about photographs: VQAv2, VizWiz, OK-VQA, TextVQA, answered greedily."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.api import Baselines, Exemplar, Measured, Model, Query
from evals.layouts import vizwiz
from evals.layouts.images import Part
from evals.layouts.vqa import VqaRecord, commonest, load_okvqa, load_textvqa, load_vqav2
from evals.official_scores import most_common
from evals.okvqa_stems import Stemmer
from evals.options import TaskOptions
from evals.scoring import vqa_accuracy, vqa_normalise
from evals.tasks.answering import AnswerTask, by_group
from evals.tasks.downloaded import Styled
from evals.tasks.styles import VQA_STYLES, style_of
from mllm.errors import UserError

GROUPS = ("answer_type", "question_type")


@dataclass(frozen=True)
class VqaSet:
    """What sets one data set apart.

    Args:
        load: Reads a part.
        size: Questions of its evaluation part.
        server_id: What its server calls a question's id.
        constant: An answer whose score is printed beside the model's.
        has_stems: Whether every answer is there twice, as typed and stemmed.
    """

    load: Callable[[Path, Part], list[VqaRecord]]
    size: int
    server_id: str = "question_id"
    constant: str | None = None
    has_stems: bool = False


SETS = {
    "vqav2": VqaSet(load_vqav2, 214_354),
    "vizwiz": VqaSet(vizwiz.load, 4_319, "image", constant="unanswerable"),
    "okvqa": VqaSet(load_okvqa, 5_046, has_stems=True),
    "textvqa": VqaSet(load_textvqa, 5_000),
}


class Vqa(Styled[VqaRecord], AnswerTask):
    """VQA accuracy over the human answers; `vqa_acc_always` normalises unanimous ones too."""

    metric = "vqa_acc"
    split = "val"

    def __init__(self, name: str, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.name = name
        self.data = SETS[name]
        self.size = self.data.size
        self.style = style_of(VQA_STYLES, options.prompt_style, name)
        self.style_name = options.prompt_style
        self.shown_answer = options.shown_answer
        self.match = options.okvqa_match if self.data.has_stems else None
        self.decode_as(self.style)
        self.decode_by(options)
        self.read(folder, options)
        self.stem = Stemmer(self.questions) if self.match == "stem" else None

    @property
    def settings(self) -> dict[str, Any]:
        match = {"okvqa_match": self.match} if self.match else {}
        return {
            "prompt": self.style.template,
            "prompt_style": self.style_name,
            "shown_answer": self.shown_answer,
            **match,
            **self.decoding,
        }

    def load(self, part: Part) -> list[VqaRecord]:
        records = self.data.load(self.folder_path, part)
        for record in records:
            if not self._humans(record):
                raw = ' with "raw_answer"' if self.match == "raw" and record.answers else ""
                raise UserError(
                    f"{self.folder_path}: question {record.question_id} has no human answers{raw}; "
                    f"are these {self.name}'s annotations?"
                )
        return records

    def key(self, record: VqaRecord) -> str:
        return record.question_id

    def _humans(self, record: VqaRecord) -> tuple[str, ...]:
        """The answers that are compared with and shown."""
        return record.raw_answers if self.match == "raw" else record.answers

    def _majority(self, record: VqaRecord) -> str:
        return commonest(record.raw_answers) if self.match == "raw" else record.majority

    def query(self, query_id: str) -> Query:
        record = self.questions.by_id[query_id]
        meta = {
            "question": record.question,
            "answers": list(self._humans(record)),
            **{name: getattr(record, name) for name in GROUPS},
        }
        segments = self.style.ask(record.image_path, question=record.question)
        return Query(query_id, segments, self._majority(record), meta)

    def show(self, record: VqaRecord) -> Exemplar:
        answer = (
            self._majority(record) if self.shown_answer == "majority" else self._humans(record)[0]
        )
        return self.style.show(
            record.question_id, record.image_path, answer, question=record.question
        )

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        row = super().row(query, responses)
        compared = self.stem(row["answer"]) if self.stem else row["answer"]
        return row | {
            "question": query.meta["question"],
            "answers": query.meta["answers"],
            "score": vqa_accuracy(compared, query.meta["answers"]),
            "score_always": vqa_accuracy(compared, query.meta["answers"], "always"),
            **{name: query.meta[name] for name in GROUPS},
        }

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        measured = super().measure(rows)
        always = sum(row["score_always"] for row in rows) / len(rows)
        measured.extra["vqa_acc_always"] = round(100 * always, 4)
        for name in GROUPS:
            if scores := by_group(rows, lambda row, name=name: row[name] or None):  # type: ignore[misc]
                measured.extra[name] = scores
        return measured

    def submission(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the questions asked; a server wants all of a test part."""
        name = self.data.server_id
        return [
            {
                name: int(row["id"]) if name == "question_id" else row["id"],
                "answer": vqa_normalise(row["answer"]),
            }
            for row in rows
        ]

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """The commonest answer to all questions, and to those of the same type."""
        answer = most_common(Counter(query.gold for query in queries))
        others = {"commonest of its question type": _commonest_by_type(queries)}
        if not any(query.meta["question_type"] for query in queries):
            others = {}
        if constant := self.data.constant:
            others[f"always {constant!r}"] = {query.id: constant for query in queries}
        scores = {name: _scores(queries, answers) for name, answers in others.items()}
        majority = _scores(queries, {query.id: answer for query in queries})
        return Baselines(
            majority=_percent(majority),
            others={name: _percent(found) for name, found in scores.items()},
            row_scores=scores,
            notes={"majority": f"always {answer!r}"},
        )


def _commonest_by_type(queries: list[Query]) -> dict[str, str]:
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for query in queries:
        by_type[query.meta["question_type"]][query.gold] += 1
    answers = {name: most_common(counts) for name, counts in by_type.items()}
    return {query.id: answers[query.meta["question_type"]] for query in queries}


def _scores(queries: list[Query], answers: dict[str, str]) -> dict[str, float]:
    return {query.id: vqa_accuracy(answers[query.id], query.meta["answers"]) for query in queries}


def _percent(scores: dict[str, float]) -> float:
    return 100 * sum(scores.values()) / len(scores)

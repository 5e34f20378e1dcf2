"""easy-vqa's test split: shapes, colours, yes and no, answered greedily."""

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, Segment, TextSegment
from corpora.reader import Corpus
from evals.api import Baselines, GenerateRequest, Measured, Model, Prompt, Query, Support, Task
from evals.controls import commonest, question_only
from evals.scoring import binomial_se, exact_match
from evals.tasks.sources import Source

PROMPT = "Question: {question} Answer:"
QUESTION = re.compile(r"Question: (.*) Answer:$", re.DOTALL)
STOPS = ("\n", "Question:")  # what follows an answer where a training document has more turns


class EasyVqa(Task):
    """Exact match of the generated answer, cut at the first stop string."""

    name = "easy_vqa"
    split = "test"
    metric = "exact_match"
    unit = "%"
    corpus_name = "easy_vqa_test"

    def __init__(self, data_dir: Path, max_new_tokens: int = 10) -> None:
        self.data_dir = data_dir
        self.max_new_tokens = max_new_tokens
        self.source = Source(data_dir, f"eval/{self.corpus_name}")

    @cached_property
    def support_source(self) -> Source:
        return Source(self.data_dir, "eval/easy_vqa_support")

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "prompt": PROMPT,
            "num_beams": 1,
            "max_new_tokens": self.max_new_tokens,
            "stops": list(STOPS),
        }

    @property
    def data_fingerprint(self) -> str:
        return self.source.corpus.fingerprint

    def ids(self) -> list[str]:
        return self.source.ids()

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        question, answer = self.source.meta(document, "question", "answer")
        segments = (
            ImageSegment(document.images[0]),
            TextSegment(PROMPT.format(question=question)),
        )
        return Query(query_id, segments, answer, {"question": question})

    def support(self) -> Support:
        return self.support_source.support(self._show)

    def _show(self, document: Document) -> tuple[Segment, ...]:
        question, answer = self.support_source.meta(document, "question", "answer")
        return (
            ImageSegment(document.images[0]),
            TextSegment(PROMPT.format(question=question)),
            TextSegment(f" {answer}"),
        )

    def request(self, prompt: Prompt) -> GenerateRequest:
        return GenerateRequest(prompt, self.max_new_tokens)

    def row(self, query: Query, response: Any) -> dict[str, Any]:
        answer = response.text
        for stop in STOPS:
            answer = answer.split(stop, 1)[0]
        answer = answer.strip()
        return {
            "raw": response.text,
            "answer": answer,
            "candidates": None,
            "question": query.meta["question"],
            "gold": query.gold,
            "is_capped": response.is_capped,
            "score": exact_match(answer, query.gold),
        }

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        share = sum(row["score"] for row in rows) / len(rows)
        extra: dict[str, Any] = {
            "num_capped": sum(row["is_capped"] for row in rows),
            "num_empty": sum(not row["answer"] for row in rows),
        }
        groups = {
            "yes_no": [row for row in rows if row["gold"] in ("yes", "no")],
            "open": [row for row in rows if row["gold"] not in ("yes", "no")],
        }
        for name, group in groups.items():
            if group:
                right = sum(row["score"] for row in group)
                extra[f"exact_match_{name}"] = round(100 * right / len(group), 4)
        return Measured(100 * share, 100 * binomial_se(share, len(rows)), extra)

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        train = list(training_questions(Corpus(self.data_dir / "vqa" / "train")))
        answer_of = question_only(train)
        hits = {q.id: exact_match(answer_of(q.meta["question"]), q.gold) for q in queries}
        constant = commonest(query.gold for query in queries)
        # A few hundred questions stray from the split's figure, which is the one people quote.
        whole = [self.query(query_id) for query_id in self.ids()]
        whole_hits = [exact_match(answer_of(q.meta["question"]), q.gold) for q in whole]
        return Baselines(
            chance=100 / len({answer for _, answer in train}),
            majority=100 * sum(query.gold == constant for query in queries) / len(queries),
            others={"question only": 100 * sum(hits.values()) / len(hits)},
            row_scores={"question only": hits},
            notes={
                "chance": "a uniform guess among the answers seen in training",
                "majority": f"always {constant!r}",
                "training questions": len(train),
                "question only, whole split": round(100 * sum(whole_hits) / len(whole), 2),
                "questions in the split": len(whole),
            },
        )


def training_questions(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """(question, answer) of every turn of the training documents."""
    for i in range(len(corpus)):
        texts = [s for s in corpus.document(i).segments if isinstance(s, TextSegment)]
        for asked, answered in pairwise(texts):
            question = QUESTION.search(asked.text)
            if question and not asked.is_scored and answered.is_scored:
                yield question[1], answered.text.strip()

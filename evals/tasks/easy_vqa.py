"""easy-vqa's test split: shapes, colours, yes and no, answered greedily."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, TextSegment
from corpora.reader import Corpus
from evals.api import Baselines, Exemplar, Model, Query
from evals.baselines import commonest, question_only
from evals.options import TaskOptions
from evals.scoring import exact_match
from evals.tasks.answering import AnswerTask
from evals.tasks.local_set import SPLITS, LocalSet

PROMPT = "Question: {question} Answer:"
QUESTION = re.compile(r"Question: (.*) Answer:$", re.DOTALL)


class EasyVqa(LocalSet, AnswerTask):
    """Exact match of the generated answer, cut at the first stop string."""

    name = set_name = "easy_vqa"
    parts = {split: "test" for split in SPLITS}  # noqa: RUF012 (a constant)
    # What follows an answer where a training document has more turns.
    stops = ("\n", "Question:")

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.decode_by(options)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": PROMPT, **self.decoding}

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        question, answer = self.source.meta(document, "question", "answer")
        group = "yes_no" if answer in ("yes", "no") else "open"
        meta = {"question": question, "group": group}
        return Query(query_id, _ask(document, question), answer, meta)

    def show(self, document: Document) -> Exemplar:
        question, answer = self.support_source.meta(document, "question", "answer")
        return Exemplar(document.key, _ask(document, question), f" {answer}")

    def row(self, query: Query, responses: Any) -> dict[str, Any]:
        return super().row(query, responses) | {"question": query.meta["question"]}

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


def _ask(document: Document, question: str) -> tuple[ImageSegment, TextSegment]:
    return ImageSegment(document.images[0]), TextSegment(PROMPT.format(question=question))


def training_questions(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """(question, answer) of every turn of the training documents."""
    for i in range(len(corpus)):
        texts = [s for s in corpus.document(i).segments if isinstance(s, TextSegment)]
        for asked, answered in pairwise(texts):
            question = QUESTION.search(asked.text)
            if question and not asked.is_scored and answered.is_scored:
                yield question[1], answered.text.strip()

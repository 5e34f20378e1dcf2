"""Questions about a page, given as a picture and as text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, Segment, TextSegment
from evals.api import Baselines, Exemplar, Measured, Model, Prompt, Query
from evals.baselines import commonest
from evals.options import TaskOptions
from evals.rows import clusters
from evals.scoring import exact_match, token_f1
from evals.shots import num_positions
from evals.tasks.answering import AnswerTask
from evals.tasks.local_set import LocalSet
from evals.uncertainty import mean_se

# The paper's words and spelling.
INSTRUCTION = (
    "Given the context below from web page, extract the answer from the given text like this: "
    "Qusestion: Who is the publisher of this book? Answer: Penguin Books Ltd."
)


class PageTask(AnswerTask):
    """Exact match and token F1, each the best over the gold answers (`query.meta["answers"]`).

    The picture stands before the text. A page whose text does not fit is cut at its end, in whole
    words, and counted; nothing else is.
    """

    max_new_tokens = 20
    stops = ("\n", "Q:")
    has_page_text = True

    @property
    def settings(self) -> dict[str, Any]:
        context = "Context: {text} " if self.has_page_text else ""
        return {"prompt": f"{INSTRUCTION} {context}Q: {{question}} A:", **self.decoding}

    def asked(
        self, key: str, image: ImageSegment, text: str, question: str, answers: Sequence[str]
    ) -> Query:
        text = " ".join(text.split())
        meta = {"page_text": text, "question": question, "answers": list(answers)}
        return Query(key, self._question(image, text, question), answers[0], meta)

    def shown(
        self, key: str, image: ImageSegment, text: str, question: str, answer: str
    ) -> Exemplar:
        text = " ".join(text.split())
        return Exemplar(key, self._question(image, text, question), f" {answer}")

    def _question(self, image: Segment, text: str, question: str) -> tuple[Segment, ...]:
        context = f"Context: {text} " if self.has_page_text else ""
        return image, TextSegment(f"{INSTRUCTION} {context}Q: {question} A:")

    def fitted(self, prompt: Prompt, model: Model) -> Prompt:
        limit, meta = model.max_positions, prompt.query.meta
        if limit is None or not self.has_page_text:
            return prompt

        def with_page(text: str) -> Prompt:
            image = prompt.query.segments[0]
            return prompt.with_query(self._question(image, text, meta["question"]))

        def fits(text: str) -> bool:
            return num_positions(with_page(text), model) + self.max_new_tokens <= limit

        if fits(meta["page_text"]):
            return prompt
        shorter = with_page(longest_beginning(meta["page_text"], fits))
        query = replace(shorter.query, meta=meta | {"is_truncated": True})
        return replace(shorter, query=query)

    def judge(self, answer: str, query: Query) -> float:
        return max(exact_match(answer, gold) for gold in query.meta["answers"])

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        row = super().row(query, responses)
        return row | {
            "question": query.meta["question"],
            "f1": max(token_f1(row["answer"], gold) for gold in query.meta["answers"]),
            "is_truncated": query.meta.get("is_truncated", False),
        }

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        measured = super().measure(rows)
        f1 = [row["f1"] for row in rows]
        measured.extra["f1"] = round(100 * sum(f1) / len(f1), 4)
        measured.extra["f1_se"] = round(100 * mean_se(f1, clusters(rows)), 4)
        measured.extra["num_truncated"] = sum(row["is_truncated"] for row in rows)
        return measured

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """The best constant answer."""
        constant = commonest(query.gold for query in queries)
        hits = [self.judge(constant, query) for query in queries]
        return Baselines(
            majority=100 * sum(hits) / len(hits), notes={"majority": f"always {constant!r}"}
        )


def longest_beginning(text: str, fits: Callable[[str], bool]) -> str:
    """As many words of `text` from its start as fit; "" where not one does."""
    words = text.split(" ")
    low, high = 0, len(words)  # `low` words fit, or none do; `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(" ".join(words[:middle])):
            low = middle
        else:
            high = middle
    return " ".join(words[:low])


class Pages(LocalSet, PageTask):
    """Drawn pages about countries."""

    name = set_name = "pages"

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.decode_by(options)

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        text, question, answers = self.source.meta(document, "page_text", "question", "answers")
        return self.asked(query_id, ImageSegment(document.images[0]), text, question, answers)

    def show(self, document: Document) -> Exemplar:
        fields = ("page_text", "question", "answers")
        text, question, answers = self.support_source.meta(document, *fields)
        image = ImageSegment(document.images[0])
        return self.shown(document.key, image, text, question, answers[0])


class PagesNoText(Pages):
    """The picture of the page alone."""

    name = "pages_no_text"
    has_page_text = False

"""Social IQa and QuaRTz: questions in words alone, by the likelihood of the answers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from corpora.document import Document, Segment, TextSegment
from evals.api import Baselines, Exemplar, Model, Prompt, Query
from evals.options import TaskOptions
from evals.tasks.local_set import LocalSet
from evals.tasks.ranking import RankTask, closed_set_baselines
from evals.tasks.sources import Source

PROMPT = "{context} Question: {question} Answer:"


class QuestionTask(LocalSet, RankTask):
    """Ranks the answers after the situation and the question, by the mean per token.

    A question that is the beginning of a sentence stands as it is, so that the answer ends it.
    """

    has_images = False
    is_conditioned = False  # the control `no_question` ranks the answers after nothing

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.use_norm(options.norm)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": PROMPT, "shot": f"{PROMPT} {{answer}}", "norm": self.norm}

    def query(self, query_id: str) -> Query:
        segments, names, answer = _sample(self.source, self.source.document(query_id))
        return Query(query_id, segments, names[answer], {"candidates": tuple(names)})

    def show(self, document: Document) -> Exemplar:
        segments, names, answer = _sample(self.support_source, document)
        return Exemplar(document.key, segments, f" {names[answer]}")

    def controls(self) -> dict[str, Callable[[Prompt], Prompt]]:
        """`no_question`: the answers alone, for a model that only likes one better."""
        return {"no_question": lambda prompt: prompt.with_query(())}

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """The longest answer, the first of equally long ones."""
        hits = {q.id: float(max(q.meta["candidates"], key=len) == q.gold) for q in queries}
        return replace(
            closed_set_baselines(queries),
            others={"longest answer": 100 * sum(hits.values()) / len(hits)},
            row_scores={"longest answer": hits},
        )


def _sample(source: Source, document: Document) -> tuple[tuple[Segment, ...], list[str], int]:
    """The prompt, the answers, the place of the right one."""
    fields = ("context", "question", "candidates", "answer")
    context, question, names, answer = source.meta(document, *fields)
    return (TextSegment(ask(context, question)),), names, answer


def ask(context: str, question: str) -> str:
    """The prompt, without what a sample lacks."""
    if not question.endswith("?"):
        return f"{context} {question}".strip()
    return PROMPT.format(context=context, question=question).strip()


class SocialIqa(QuestionTask):
    """What someone does, wants or feels: three answers."""

    name = set_name = "socialiqa"


class Quartz(QuestionTask):
    """What more or less of one thing does to another: two answers."""

    name = set_name = "quartz"

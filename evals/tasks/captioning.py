"""Tasks whose answer is a caption, scored against several references at once."""

from collections.abc import Sequence
from typing import Any

from evals.api import Measured, Query
from evals.captions import CaptionScores, has_official_tokenizer, one_line, score_captions
from evals.scoring import bootstrap_se
from evals.tasks.answering import AnswerTask, counts, up_to


class CaptionTask(AnswerTask):
    """Continues a prompt with beam search; `query.meta["captions"]` are the references.

    The prompt's words belong to the caption where `prefix` says so (`An image of`).
    """

    unit = ""
    max_new_tokens = 30
    num_beams = 5
    prefix = ""

    @property
    def metric(self) -> str:  # type: ignore[override]
        return "CIDEr" if has_official_tokenizer() else "cider_d_simple"

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        return super().row(query, responses) | {
            "answer": one_line(self.prefix + up_to(responses[-1].text, self.stops)),
            "references": query.meta["captions"],
            "score": None,  # CIDEr of a picture depends on all others: see results.json
        }

    def judge(self, answer: str, query: Query) -> float:
        return 0.0

    def row_scores(self, rows: list[dict[str, Any]]) -> list[float] | None:
        by_image = score_rows(rows).cider_by_image
        return [by_image[row["id"]] for row in rows]

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        scores = score_rows(rows)
        extra = {
            "bleu_4" + scores.suffix: round(scores.bleu_4, 4),
            "rouge_l" + scores.suffix: round(scores.rouge_l, 4),
            "num_distinct": len({row["answer"] for row in rows}),
            **counts(rows),
            "num_empty": sum(not row["raw"].strip() for row in rows),
        }
        return Measured(scores.cider, bootstrap_se(list(scores.cider_by_image.values())), extra)


def score_rows(rows: list[dict[str, Any]]) -> CaptionScores:
    return score_captions(
        {row["id"]: row["references"] for row in rows}, {row["id"]: row["answer"] for row in rows}
    )


def score_texts(queries: list[Query], captions: list[str]) -> CaptionScores:
    """Scores of captions that no model made."""
    references = {query.id: query.meta["captions"] for query in queries}
    hypotheses = {query.id: text for query, text in zip(queries, captions, strict=True)}
    return score_captions(references, hypotheses)

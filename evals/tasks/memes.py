"""HatefulMemes: is a picture with words on it hateful, by the likelihood of yes and no."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.api import Baselines, Exemplar, Measured, Model, Prompt, Query, RankRequest, Request
from evals.layouts.hateful_memes import Meme, load
from evals.layouts.images import Part
from evals.options import TaskOptions
from evals.scoring import roc_auc, roc_auc_se
from evals.tasks.downloaded import Styled
from evals.tasks.ranking import RankTask, closed_set_baselines
from evals.tasks.rows import candidate_scores
from evals.tasks.styles import MEME_STYLES, style_of
from mllm.errors import UserError

ANSWERS = ("no", "yes")  # of a tie the first, so that yes is said where its score is above 0


class HatefulMemes(Styled[Meme], RankTask):
    """ROC AUC of log P(yes) - log P(no), per-token means if their lengths differ."""

    name = "hateful_memes"
    metric = "ROC AUC"
    unit = ""  # 100 x the area, which is no share of queries
    split = "dev_seen"
    size = 500
    is_conditioned = False  # no norm enters the area

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.style = style_of(MEME_STYLES, options.prompt_style, self.name)
        self.style_name = options.prompt_style
        self.read(folder, options)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": self.style.template, "prompt_style": self.style_name}

    def load(self, part: Part) -> list[Meme]:
        memes = load(self.folder_path, part)
        bare = [meme.id for meme in memes if meme.label is None]
        if bare:
            raise UserError(
                f"{self.folder_path}: {len(bare)} memes of {part} have no label, the first "
                f"{bare[0]}; take the file that has them"
            )
        return memes

    def key(self, record: Meme) -> str:
        return record.id

    def query(self, query_id: str) -> Query:
        meme = self.questions.by_id[query_id]
        segments = self.style.ask(meme.image_path, text=meme.text)
        return Query(query_id, segments, ANSWERS[bool(meme.label)], {"candidates": ANSWERS})

    def show(self, record: Meme) -> Exemplar:
        answer = ANSWERS[bool(record.label)]
        return self.style.show(record.id, record.image_path, answer, text=record.text)

    def request(self, prompt: Prompt) -> Request:
        names = prompt.query.meta["candidates"]
        return RankRequest(prompt, tuple(self.style.joint + name for name in names), False)

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        row = super().row(query, responses)
        return row | {"yes_over_no": yes_over_no(row)}

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        scores = [yes_over_no(row) for row in rows]
        labels = [row["gold"] == "yes" for row in rows]
        right = sum((s > 0) == label for s, label in zip(scores, labels, strict=True))
        extra: dict[str, Any] = {
            "accuracy": round(100 * right / len(rows), 4),
            "num_ties": len(rows) - len(set(scores)),
        }
        area = roc_auc(labels, scores)
        if area is None:
            extra["undefined"] = f"all {len(rows)} labels are {rows[0]['gold']}: no pair to compare"
            return Measured(math.nan, math.nan, extra)
        return Measured(100 * area, 100 * roc_auc_se(labels, scores), extra)

    def row_scores(self, rows: list[dict[str, Any]]) -> list[float] | None:
        return None  # an area is no mean over rows

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        constant = closed_set_baselines(queries)
        return Baselines(
            chance=50.0,
            majority=50.0,
            notes={"majority": "any constant score", "accuracy of the majority": constant.majority},
        )


def yes_over_no(row: dict[str, Any]) -> float:
    """What a row's meme is ordered by: higher for hateful (nats)."""
    no, yes = candidate_scores(row)
    if no.num_tokens == yes.num_tokens:
        return yes.ll - no.ll
    return yes.ll / yes.num_tokens - no.ll / no.num_tokens

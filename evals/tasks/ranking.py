"""Tasks whose answer is the likeliest of a closed set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evals.api import (
    Baselines,
    Measured,
    Model,
    Prompt,
    Query,
    RankRequest,
    Request,
    Task,
    VariantRequest,
)
from evals.rows import clusters
from evals.scoring import NORM_NAMES, UNCOND, best_candidate
from evals.tasks.rows import candidate_rows, candidate_scores
from evals.uncertainty import mean_se
from mllm.errors import UserError


class RankTask(Task):
    """Ranks `query.meta["candidates"]`, strings without their joining space; gold is one of them.

    Two candidates may have the same text (`missile` in ImageNet's names): either is then right.
    """

    metric = "accuracy"
    unit = "%"
    norm = "token"  # headline; all norms are reported
    is_conditioned = True  # whether the norm `uncond` is asked for

    def use_norm(self, chosen: str | None) -> None:
        """Takes over the user's headline norm.

        Raises:
            UserError: It needs what this task does not ask for.
        """
        if chosen == "uncond" and not self.is_conditioned:
            raise UserError(
                f"--norm uncond: {self.name} scores nothing after an empty prompt; choose another"
            )
        self.norm = chosen or self.norm

    def request(self, prompt: Prompt) -> Request:
        names = prompt.query.meta["candidates"]
        return RankRequest(prompt, tuple(f" {name}" for name in names), self.is_conditioned)

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        scores = responses[-1]
        candidates = query.meta["candidates"]
        answer = candidates[best_candidate(scores, self.norm)]
        return {
            "raw": None,
            "answer": answer,
            "candidates": candidate_rows(scores),
            "gold": query.gold,
            "gold_index": candidates.index(query.gold),
            "score": float(answer == query.gold),
        }

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        hits = {norm: hits_under(rows, norm) for norm in norms_of(rows)}
        mine = hits[self.norm]
        share = sum(mine) / len(mine)
        extra: dict[str, Any] = {
            f"accuracy_{norm}": round(100 * sum(found) / len(found), 4)
            for norm, found in hits.items()
        }
        return Measured(100 * share, 100 * mean_se(mine, clusters(rows)), extra)

    def row_scores(self, rows: list[dict[str, Any]]) -> list[float] | None:
        return hits_under(rows, self.norm)

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """A uniform guess, and the best constant answer."""
        return closed_set_baselines(queries)

    def gold_class(self, query: Query) -> str:
        return query.gold


class VariantTask(RankTask):
    """Scores one text after the prompt continued in several ways; a candidate is such a way.

    `query.meta["endings"]` holds segments for each of `query.meta["candidates"]`, and
    `query.meta["scored"]` the text, with its joining space.
    """

    norm = "sum"  # the text is the same after every ending, so norms agree
    is_conditioned = False

    def request(self, prompt: Prompt) -> Request:
        meta = prompt.query.meta
        texts = (meta["scored"],) * len(meta["endings"])
        return VariantRequest(prompt, tuple(meta["endings"]), texts)

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        names = query.meta["candidates"]
        scores = [
            replace(score, text=f" {name}")
            for score, name in zip(responses[-1], names, strict=True)
        ]
        return super().row(query, [scores])


def norms_of(rows: list[dict[str, Any]]) -> list[str]:
    """The norms that the rows can be scored under."""
    has_uncond = all("ll_uncond" in c for row in rows for c in row["candidates"])
    return [norm for norm in NORM_NAMES if norm != UNCOND or has_uncond]


def hits_under(rows: list[dict[str, Any]], norm: str) -> list[float]:
    """1.0 for each row whose best candidate under `norm` has the text of the gold one."""
    hits = []
    for row in rows:
        texts = [candidate["text"] for candidate in row["candidates"]]
        best = best_candidate(candidate_scores(row), norm)
        hits.append(float(texts[best] == texts[row["gold_index"]]))
    return hits


def closed_set_baselines(queries: list[Query]) -> Baselines:
    """Chance, and the best constant answer: one text where all queries share their candidates,
    else one place in the list."""
    lists = [query.meta["candidates"] for query in queries]
    is_shared = all(names == lists[0] for names in lists)
    answers = [q.gold if is_shared else q.meta["candidates"].index(q.gold) for q in queries]
    commonest, count = max(sorted(Counter(answers).items()), key=lambda item: item[1])
    return Baselines(
        chance=100 * sum(1 / len(names) for names in lists) / len(lists),
        majority=100 * count / len(queries),
        notes={
            "majority": f"always {commonest!r}"
            if is_shared
            else "always the commonest place of the right answer in the list"
        },
    )

"""Candidates as they stand in samples.jsonl, so that every norm can be recomputed from there."""

from collections.abc import Sequence
from typing import Any

from evals.api import CandidateScore


def candidate_rows(scores: Sequence[CandidateScore]) -> list[dict[str, Any]]:
    return [
        {
            "text": score.text,
            # Six decimals of a nat: below what float32 sums can tell apart.
            "ll": round(score.ll, 6),
            "n_tok": score.num_tokens,
            "n_char": score.num_chars,
            "n_byte": score.num_bytes,
        }
        | ({} if score.ll_uncond is None else {"ll_uncond": round(score.ll_uncond, 6)})
        for score in scores
    ]


def candidate_scores(row: dict[str, Any]) -> list[CandidateScore]:
    return [
        CandidateScore(c["text"], c["ll"], c["n_tok"], c["n_char"], c["n_byte"], c.get("ll_uncond"))
        for c in row["candidates"]
    ]

"""A model that knows the right answers, and one that never does: what scoring must tell apart."""

from collections.abc import Sequence

from evals.api import (
    CandidateScore,
    Generated,
    GenerateRequest,
    Prompt,
    RankRequest,
    VariantRequest,
)
from tests.evals.conftest import FakeModel


class Oracle(FakeModel):
    """Finds the gold answer likeliest, whatever it is asked.

    Args:
        is_right: Otherwise the gold answer is the least likely.
        says: What it generates; None for the gold answer.
    """

    max_positions = None

    def __init__(self, is_right: bool = True, says: str | None = None) -> None:
        super().__init__()
        self.gold_ll, self.says = -1.0 if is_right else -90.0, says
        self.prompts: list[Prompt] = []
        self.requests: list[RankRequest | VariantRequest | GenerateRequest] = []

    def _take(self, requests: Sequence) -> None:
        self._ask([request.prompt.query.id for request in requests])
        self.requests += requests

    def loglikelihood(
        self, requests: Sequence[RankRequest | VariantRequest]
    ) -> list[list[CandidateScore]]:
        self._take(requests)
        rows = []
        for request in requests:
            query = request.prompt.query
            names = query.meta["candidates"]
            texts = request.texts if isinstance(request, VariantRequest) else request.candidates
            uncond = -20.0 if isinstance(request, RankRequest) and request.is_conditioned else None
            rows.append(
                [
                    CandidateScore(
                        text, self.gold_ll if name == query.gold else -30.0, 2, 4, 4, uncond
                    )
                    for name, text in zip(names, texts, strict=True)
                ]
            )
        return rows

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
        self._take(requests)
        return [
            Generated(f" {r.prompt.query.gold}" if self.says is None else self.says, 3, False)
            for r in requests
        ]

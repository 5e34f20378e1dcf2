"""What ranking gives back for one candidate; evaluation reads it without loading a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CandidateScore:
    """Log-likelihood of one candidate (nats, summed) and its lengths.

    Characters and UTF-8 bytes are counted without the joining space. `ll_uncond` is the candidate's
    log-likelihood given an empty prompt, where it was asked for.
    """

    text: str
    ll: float
    num_tokens: int
    num_chars: int
    num_bytes: int
    ll_uncond: float | None = None

"""An exponential moving average of the weights: often better than the last ones, and never trained.

Each rank averages the float32 pieces that it keeps of the trainable parameters, so that ZeRO shares
it out as it does the optimizer's states.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Piece(NamedTuple):
    """What a rank keeps in float32 of a trainable parameter."""

    name: str
    start: int  # in the flattened parameter
    numel: int
    vector: torch.Tensor  # holds it, beside others; the optimizer updates it
    offset: int  # in the vector


class WeightAverage:
    """The average of one rank's pieces.

    Args:
        decay: of the average at each step. At first it is shorter, so that the initial weights
            fade: (1 + n) / (10 + n) at the n-th step, as TensorFlow's has it.
    """

    @torch.no_grad()
    def __init__(self, pieces: Iterable[Piece], decay: float):
        self._decay = decay
        self._vectors = list({id(piece.vector): piece.vector for piece in pieces}.values())
        self._averages = [vector.detach().clone() for vector in self._vectors]

    @torch.no_grad()
    def update(self, applied_steps: int) -> None:
        """Takes in the weights after the `applied_steps`-th step that moved them."""
        decay = min(self._decay, (1 + applied_steps) / (10 + applied_steps))
        for average, vector in zip(self._averages, self._vectors, strict=True):
            average.lerp_(vector, 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begins anew from the weights as they are."""
        for average, vector in zip(self._averages, self._vectors, strict=True):
            average.copy_(vector)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average where the weights are; they come back to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, vector in zip(self._averages, self._vectors, strict=True):
            weights = vector.clone()
            vector.copy_(average)
            average.copy_(weights)

    @torch.no_grad()
    def load(self, saved: Mapping[str, torch.Tensor], pieces: Iterable[Piece]) -> None:
        """Goes on from a saved average.

        Args:
            saved: float32, each parameter whole.
        """
        places = {
            id(vector): average
            for vector, average in zip(self._vectors, self._averages, strict=True)
        }
        for piece in pieces:
            values = saved[piece.name].view(-1)[piece.start :][: piece.numel]
            places[id(piece.vector)].view(-1)[piece.offset : piece.offset + piece.numel] = values

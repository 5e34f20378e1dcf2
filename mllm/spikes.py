"""Which steps went wrong: loss spikes, non-finite losses, steps that were skipped.

A loss is held against the median of the usual ones before it, in units of their spread (1.4826
median absolute deviations are one standard deviation of a normal distribution), so that neither a
mixture's noise nor an earlier spike decides. All ranks see the same losses and come to the same.
"""

import json
import math
import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mllm.config import TrainConfig

MIN_HISTORY = 20  # steps before which nothing is called a spike
MIN_RISE = 0.05  # a share of the median: a rise below it is none, however even the losses were


class LossWatch:
    """Looks at each step's loss.

    Args:
        train: `spike_sigmas`, `spike_window` and how many bad steps in a row are too many.
        history: losses before, oldest first; of a run that goes on.

    Attributes:
        bad_in_a_row: bad steps up to now, of whatever kind.
        is_spiking: some of them moved the weights, so that a checkpoint would keep the harm.
    """

    def __init__(self, train: TrainConfig, history: Iterable[float] = ()):
        self._train = train
        self._usual = deque(history, maxlen=train.spike_window)
        self._spikes_in_a_row = self._skipped_in_a_row = self.bad_in_a_row = 0
        self.is_spiking = False

    def look(self, loss: float, *, applied: bool) -> str | None:
        """What is wrong with the step, for the ledger; None: nothing."""
        problem = self._problem(loss, applied)
        if problem is None:
            self._usual.append(loss)
            self._spikes_in_a_row = self._skipped_in_a_row = self.bad_in_a_row = 0
            self.is_spiking = False
            return None
        self.bad_in_a_row += 1
        self.is_spiking |= applied
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        self._spikes_in_a_row = self._spikes_in_a_row + 1 if applied else 0
        return problem

    def too_many(self) -> str | None:
        """Why the run cannot go on like this, or None."""
        if self._skipped_in_a_row >= self._train.max_skipped_steps:
            return f"{self._skipped_in_a_row} steps in a row had non-finite gradients"
        if self._spikes_in_a_row >= self._train.max_spikes:
            return f"the loss spiked for {self._spikes_in_a_row} steps in a row"
        if self.bad_in_a_row >= self._train.max_skipped_steps + self._train.max_spikes:
            return f"{self.bad_in_a_row} steps in a row were skipped or spiked"
        return None

    def _problem(self, loss: float, applied: bool) -> str | None:
        if not math.isfinite(loss):
            return f"non-finite loss{'' if applied else ', step skipped'}"
        if not applied:
            return "step skipped: non-finite gradients"
        if not self._train.spike_sigmas or len(self._usual) < MIN_HISTORY:
            return None
        median = statistics.median(self._usual)
        spread = 1.4826 * statistics.median(abs(x - median) for x in self._usual)
        limit = median + max(self._train.spike_sigmas * spread, MIN_RISE * abs(median))
        if loss <= limit:
            return None
        return f"loss spike: {loss:.3f}, the median of the last {len(self._usual)} is {median:.3f}"


def usual_losses(metrics_path: Path, window: int) -> list[float]:
    """The last losses of a run that were as usual, from its metrics.jsonl; none for a new run."""
    losses: deque[float] = deque(maxlen=window)
    if metrics_path.exists():
        with open(metrics_path, encoding="utf-8") as file:
            for text in file:
                line: dict[str, Any] = json.loads(text)
                if isinstance(line.get("loss"), float) and not line.get("problem"):
                    losses.append(line["loss"])
    return list(losses)

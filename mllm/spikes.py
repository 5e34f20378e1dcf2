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
from contextlib import suppress
from pathlib import Path
from typing import Any

from mllm.config import TrainConfig

MIN_HISTORY = 20  # steps before which nothing is called a spike
MIN_RISE = 0.05  # a share of the median: a rise below it is none, however even the losses were


class LossWatch:
    """Looks at each step's loss.

    Args:
        train: `spike_sigmas`, `spike_window` and how many bad steps in a row are too many.
        past: the lines of metrics.jsonl that a run goes on after, oldest first.

    Attributes:
        bad_in_a_row: bad steps up to now, of whatever kind.
        first_harm: the first of them that moved the weights, counted from the first bad one as 0;
            from it on a checkpoint would keep the harm. None: they were all skipped.
    """

    def __init__(self, train: TrainConfig, past: Iterable[dict[str, Any]] = ()):
        self._train = train
        self._usual: deque[float] = deque(maxlen=train.spike_window)
        self._spikes_in_a_row = self._skipped_in_a_row = self.bad_in_a_row = 0
        self.first_harm: int | None = None
        for line in past:
            self._count(line["loss"], line.get("problem"), bool(line["applied"]))

    def look(self, loss: float, *, applied: bool) -> str | None:
        """What is wrong with the step, for the ledger; None: nothing."""
        problem = self._problem(loss, applied)
        self._count(loss, problem, applied)
        return problem

    def _count(self, loss: float, problem: str | None, applied: bool) -> None:
        if problem is None:
            self._usual.append(loss)
            self._spikes_in_a_row = self._skipped_in_a_row = self.bad_in_a_row = 0
            self.first_harm = None
            return
        if applied and self.first_harm is None:
            self.first_harm = self.bad_in_a_row
        self.bad_in_a_row += 1
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        self._spikes_in_a_row = self._spikes_in_a_row + 1 if applied else 0

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


def recent_steps(metrics_path: Path, window: int) -> list[dict[str, Any]]:
    """The last steps of a run, bad ones too, from its metrics.jsonl; none for a new run."""
    steps: deque[dict[str, Any]] = deque(maxlen=2 * window)
    if metrics_path.exists():
        with open(metrics_path, encoding="utf-8") as file:
            for text in file:
                with suppress(ValueError):  # half a line, where the disk was full
                    line: dict[str, Any] = json.loads(text)
                    if "loss" in line and (line["loss"] is not None or line.get("problem")):
                        steps.append(line)
    return list(steps)

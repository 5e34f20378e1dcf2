"""Which row of which source each row of the run is: over segments, windows and epochs.

The run is a line of *stream steps*. Training skips the excluded windows of it: training step s
reads the s-th stream step that lies in none. A *segment* is a stretch of stream steps with one
mixture and one seed. Each source counts its own rows through all segments, so a change of weights
never brings a sample back before its epoch ends; an epoch keeps the order it began with, and a new
seed orders those that begin after it. Everything has a closed form: any step costs the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mllm.errors import UserError
from mllm.stream.mixture import Mixture
from mllm.stream.permute import epoch_row, hash_key, mix

Window = tuple[int, int]  # stream steps from the first up to, not including, the second


@dataclass(frozen=True)
class Segment:
    """A stretch of the run with one mixture and one seed."""

    first_step: int  # stream step
    seed: int
    counts: Mapping[str, int]  # source name to its rows in each period of the mixture


@dataclass(frozen=True)
class OrderedRows:
    """The global rows of one step; arrays of (G,)."""

    source_ids: np.ndarray  # int64
    rows: np.ndarray  # int64, of that source
    epochs: np.ndarray  # int64, of that source
    seeds: list[int]  # that the source's epoch began with
    seed: int  # of the segment


def stream_step(step: int, windows: Sequence[Window]) -> int:
    """The stream step that training step `step` reads; `windows` as `merged` gives them."""
    for first, stop in windows:
        if step >= first:
            step += stop - first
    return step


def merged(windows: Sequence[Window]) -> tuple[Window, ...]:
    """The same stream steps as sorted windows that neither overlap nor touch."""
    result: list[Window] = []
    for first, stop in sorted(windows):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((first, stop))
    return tuple(result)


class Order:
    """The order of a run.

    Args:
        segments: by first step, the first at 0.
        sizes: rows in an epoch of each source that may be asked for; their places are source ids.
        rows_per_step: G.
        windows: excluded stream steps, merged.
        label: tells the permutations of different kinds of stream apart.
        group_size: rows of a source that stay neighbours; a short last group is filled up, with
            row numbers from `sizes` on.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        sizes: Mapping[str, int],
        *,
        rows_per_step: int,
        windows: Sequence[Window] = (),
        label: str = "order",
        group_size: int = 1,
    ) -> None:
        self.segments, self.windows = list(segments), windows
        self._rows_per_step, self._group_size = rows_per_step, group_size
        self._num_groups = np.array([-(-size // group_size) for size in sizes.values()])
        ids = {name: number for number, name in enumerate(sizes)}
        self._first_steps = np.array([segment.first_step for segment in segments])
        self.mixtures = [Mixture(list(segment.counts.values())) for segment in segments]
        self._ids = [np.array([ids.get(name, -1) for name in s.counts]) for s in segments]
        # For each source: epochs from which a seed rules, those seeds, and their keys.
        self._seed_epochs: list[list[int]] = [[] for _ in sizes]
        self._seeds: list[list[int]] = [[] for _ in sizes]
        self._keys: list[list[int]] = [[] for _ in sizes]
        self._begun: list[np.ndarray] = []  # rows of each source before each segment
        done = dict.fromkeys((name for segment in segments for name in segment.counts), 0)
        for number, segment in enumerate(segments):
            self._begun.append(np.array([done[name] for name in segment.counts], dtype=np.int64))
            for name, source_id in ids.items():
                epoch_rows = int(self._num_groups[source_id]) * group_size
                self._seed_epochs[source_id].append(-(-done.get(name, 0) // epoch_rows))
                self._seeds[source_id].append(segment.seed)
                self._keys[source_id].append(hash_key(label, segment.seed, name))
            if number + 1 < len(segments):
                num_rows = (segments[number + 1].first_step - segment.first_step) * rows_per_step
                counts = self.mixtures[number].counts_in(num_rows)
                for name, count in zip(segment.counts, counts.tolist(), strict=True):
                    done[name] += count

    def rows(self, step: int) -> OrderedRows:
        """The rows of training step `step`, in constant time for any step."""
        place = stream_step(step, self.windows)
        number = int(np.searchsorted(self._first_steps, place, side="right")) - 1
        first = (place - self.segments[number].first_step) * self._rows_per_step
        sources, numbers = self.mixtures[number].rows(first, self._rows_per_step)
        numbers = numbers + self._begun[number][sources]
        source_ids = self._ids[number][sources]
        if source_ids.min() < 0:
            missing = list(self.segments[number].counts)[int(sources[source_ids.argmin()])]
            raise UserError(f"step {step} has rows of {missing}, which this mixture lacks")
        groups, offsets = np.divmod(numbers, self._group_size)
        num_groups = self._num_groups[source_ids]
        epochs, positions = np.divmod(groups, num_groups)
        seeds, keys = [0] * len(numbers), np.empty(len(numbers), dtype=np.uint64)
        for source_id in np.unique(source_ids).tolist():
            mine = np.flatnonzero(source_ids == source_id)
            ruling = np.searchsorted(self._seed_epochs[source_id], epochs[mine], side="right") - 1
            keys[mine] = np.array(self._keys[source_id], dtype=np.uint64)[ruling]
            for row, which in zip(mine.tolist(), ruling.tolist(), strict=True):
                seeds[row] = self._seeds[source_id][which]
        keys = mix(keys ^ mix(epochs.astype(np.uint64)))
        chosen = epoch_row(positions, num_groups, keys) * self._group_size + offsets
        return OrderedRows(source_ids, chosen, epochs, seeds, self.segments[number].seed)

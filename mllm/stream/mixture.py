"""Which source each row of the run comes from: an integer-periodic pattern of row shares.

Row g of the run belongs to source `pattern[g % period]`; that source's own row number is then a
closed form. Over any prefix no source is a whole row away from its share.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# A longer period follows the shares more closely; shares are rounded to 1 / MAX_PERIOD.
MAX_PERIOD = 10_000


class Mixture:
    """Rows of the run dealt to S sources.

    Args:
        counts: rows of each source in one period, as `integer_shares` gives them.

    Attributes:
        counts: int64 (S,), rows of each source in one period.
        pattern: int64 (period,), the source of each row of a period.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = np.array(counts, dtype=np.int64)
        self.pattern = spread(self.counts.tolist())
        self.period = len(self.pattern)
        is_source = self.pattern[:, None] == np.arange(len(counts))
        earlier = np.cumsum(is_source, axis=0) - is_source  # (period, S)
        self._rank_in_period = earlier[np.arange(self.period), self.pattern]

    @property
    def shares(self) -> np.ndarray:
        """float64 (S,), the row shares as realised over a period."""
        return self.counts / self.period

    def rows(self, first: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and the source's own row number of run rows `first .. first + num_rows - 1`.

        Returns:
            Two int64 (num_rows,) arrays.
        """
        periods, place = np.divmod(np.arange(first, first + num_rows), self.period)
        source_ids = self.pattern[place]
        return source_ids, periods * self.counts[source_ids] + self._rank_in_period[place]

    def counts_in(self, num_rows: int) -> np.ndarray:
        """int64 (S,), how many of the first `num_rows` rows of the run are each source's."""
        periods, rest = divmod(num_rows, self.period)
        return periods * self.counts + np.bincount(self.pattern[:rest], minlength=len(self.counts))


def integer_shares(shares: Sequence[Fraction]) -> list[int]:
    """Rows per period: exact if the shares allow a period up to MAX_PERIOD, else rounded to it."""
    total = sum(shares, Fraction(0))
    exact = [share / total for share in shares]
    period = np.lcm.reduce([min(f.denominator, MAX_PERIOD + 1) for f in exact], dtype=object)
    if period <= MAX_PERIOD:
        return [int(share * period) for share in exact]
    # Largest remainders; a source that rounds to nothing still gets one row a period.
    counts = [max(1, int(share * MAX_PERIOD)) for share in exact]
    remainders = [share * MAX_PERIOD - count for share, count in zip(exact, counts, strict=True)]
    by_remainder = sorted(range(len(shares)), key=lambda i: -remainders[i])
    for i in by_remainder[: max(0, MAX_PERIOD - sum(counts))]:
        counts[i] += 1
    return counts


def spread(counts: Sequence[int]) -> np.ndarray:
    """A period in which source i stands `counts[i]` times, as evenly as can be.

    Tijdeman's solution of the chairman assignment problem (1980): after any n rows each source is
    within 1 - 1 / (2 S - 2) rows of n * counts[i] / period.

    Returns:
        int64 (sum(counts),)
    """
    num_sources, period = len(counts), sum(counts)
    if num_sources == 1:
        return np.zeros(period, dtype=np.int64)
    scale = 2 * num_sources - 2
    given = [0] * num_sources
    pattern = np.empty(period, dtype=np.int64)
    for n in range(1, period + 1):
        # Rows owed times the period; a source may be served once it is owed 1 / scale of a row,
        # and the one whose debt would reach the bound first is.
        owed = [count * n - period * have for count, have in zip(counts, given, strict=True)]
        served = min(
            (i for i in range(num_sources) if owed[i] * scale >= period),
            key=lambda i: (period * (scale - 1) - owed[i] * scale) / counts[i],
        )
        given[served] += 1
        pattern[n - 1] = served
    return pattern

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.stream.mixture import MAX_PERIOD, Mixture, integer_shares, spread


@given(counts=st.lists(st.integers(1, 300), min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_no_source_is_ever_a_whole_row_off_its_share(counts):
    pattern = np.tile(spread(counts), 2)
    given_rows = np.cumsum(pattern[:, None] == np.arange(len(counts)), axis=0)
    rows = np.arange(1, len(pattern) + 1)[:, None]
    owed = rows * np.array(counts) / sum(counts)
    assert np.abs(given_rows - owed).max() < 1
    assert (given_rows[-1] == 2 * np.array(counts)).all()


@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    first=st.integers(0, 10**12),
    num_rows=st.integers(1, 100),
)
@settings(deadline=None, max_examples=60)
def test_the_closed_form_is_the_count_of_earlier_rows(shares, first, num_rows):
    mixture = Mixture(integer_shares([Fraction(share) for share in shares]))
    sources, numbers = mixture.rows(first, num_rows)
    offset = first - first % mixture.period
    pattern, skipped = mixture.pattern, first // mixture.period
    for i in range(num_rows):
        place = first + i - offset
        whole, rest = divmod(place, mixture.period)
        source = pattern[rest]
        assert sources[i] == source
        assert mixture.counts_in(first + i)[source] == numbers[i]
        earlier = (skipped + whole) * mixture.counts[source] + (pattern[:rest] == source).sum()
        assert numbers[i] == earlier


def test_the_papers_shares_have_a_period_of_twelve():
    assert integer_shares([Fraction("0.5"), Fraction("0.5"), Fraction("0.2")]) == [5, 5, 2]


def test_shares_without_a_short_period_are_rounded_and_none_is_lost():
    counts = integer_shares([Fraction(1, 3), Fraction(1, 7919), Fraction(1, 10**9)])
    assert sum(counts) == MAX_PERIOD
    assert min(counts) == 1
    assert abs(counts[1] / counts[0] - 3 / 7919) < 1e-4

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.errors import UserError
from mllm.stream import pack, pool
from tests.stream.documents import lengths_of, packed_rows

DOCUMENT = st.tuples(st.integers(2, 90), st.lists(st.integers(0, 100), max_size=4))
SHORT = st.tuples(st.integers(2, 30), st.lists(st.integers(0, 100), max_size=1))
DROPPED = st.just((0, []))


def many(seed, longest):
    """Enough documents that a pool of 7 or 40 is refilled again and again."""
    draws = np.random.default_rng(seed)
    images = [draws.integers(0, 100, n).tolist() for n in draws.integers(0, 2, 200)]
    return list(zip(draws.integers(2, longest, 200).tolist(), images, strict=True))


SETTINGS = dict(
    documents=st.lists(DOCUMENT | SHORT | DROPPED, min_size=1, max_size=60)
    | st.builds(many, st.integers(0, 10**6), st.sampled_from([12, 40, 120])),
    seq_len=st.integers(9, 130),
    num_latents=st.integers(1, 6),
    join_share=st.sampled_from([0.0, 0.3, 1.0]),
    window=st.sampled_from([4, 1000]),
    num_waiting=st.sampled_from([1, 7, 40, 1000]),
)


def pack_small(documents, seq_len, num_latents, join_share, window, num_waiting):
    lengths = lengths_of(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "WINDOW", window)
        patch.setattr(pool, "POOL", num_waiting)
        sizes = dict(seq_len=seq_len, num_latents=num_latents, join_share=join_share)
        return lengths, packed_rows(lengths, **sizes)


@given(**SETTINGS)
@settings(deadline=None, max_examples=120)
def test_every_token_stands_once_and_no_image_is_cut(documents, seq_len, num_latents, **sizes):
    span = num_latents + 2
    lengths, rows = pack_small(documents, seq_len, num_latents, **sizes)
    ends = [tokens + len(images) * span for tokens, images in documents]
    image_positions = [lengths.image_positions(i, num_latents) for i in range(len(documents))]
    seen = [[] for _ in documents]
    for is_joined, row_images, row_tokens, pieces in rows:
        used = num_images = 0
        for number, (sample, start, stop) in enumerate(pieces):
            assert start < stop
            seen[sample].append((start, stop))
            used += stop - start
            if is_joined:
                used -= start == 0
                used += stop < ends[sample] and number + 1 < len(pieces)
            for position in image_positions[sample]:
                inside = max(0, min(stop, position + span) - max(start, position))
                assert inside in (0, span), "an image is cut"
                num_images += inside == span
        assert used + is_joined == row_tokens <= seq_len
        assert num_images == row_images
    for sample, length in enumerate(ends):
        cuts = sorted(seen[sample])
        if length == 0:
            assert not cuts
            continue
        assert [start for start, _ in cuts] == [0, *[stop for _, stop in cuts[:-1]]]
        assert cuts[-1][1] == length
        if documents[sample][1] and length <= seq_len:
            assert len(cuts) == 1, "a document with images that fits a row was cut"


class ByHand:
    """The rules at the top of pack.py, followed over a plain list: slow and without any index."""

    def __init__(self, capacity, seq_len, is_joined, num_waiting):
        self.capacity, self.slack, self.is_joined = capacity, max(1, seq_len // 64), is_joined
        self.num_waiting = num_waiting
        self.waiting = []  # by age: [cost, may be cut, ticket, sample, start, stop]
        self.tickets = 0
        self.rows = []

    def add(self, sample, length, image_positions):
        start = 0
        while start < length:
            reach = start + self.capacity + (1 if self.is_joined and start == 0 else 0)
            stop = length
            if length > reach:
                before = [p for p in image_positions if start + (start == 0) < p <= reach]
                stop = before[-1] if before else reach
            cost = stop - start
            if self.is_joined and start == 0:
                cost -= 1
            if self.is_joined and stop < length:
                cost += 1
            if cost >= self.capacity:
                self.rows.append([(sample, start, stop)])
            else:
                is_text = not any(start <= p < stop for p in image_positions)
                self.tickets += 1
                may_cut = is_text and stop == length
                self.waiting.append([cost, may_cut, self.tickets, sample, start, stop])
            if len(self.waiting) >= self.num_waiting:
                self.fill()
            start = stop

    def take(self, cost, kinds=(False, True)):
        """The first that came among those that must stay whole, else among texts."""
        for kind in kinds:
            found = [piece for piece in self.waiting if piece[0] == cost and piece[1] == kind]
            if found:
                piece = min(found, key=lambda piece: piece[2])
                self.waiting.remove(piece)
                return piece
        raise AssertionError("none waits")

    def fills(self, room, without=None):
        """The larger of two that fill `room` exactly."""
        costs = [piece[0] for piece in self.waiting]
        if without is not None:
            costs.remove(without)
        for large in sorted(costs, reverse=True):
            rest = list(costs)
            rest.remove(large)
            if room - large in rest:
                return large
        return None

    def choose(self, room):
        costs = [piece[0] for piece in self.waiting]
        fitting = [cost for cost in costs if cost <= room]
        if not fitting or max(fitting) == room:
            return max(fitting, default=None)
        if 2 * max(fitting) <= room and costs[0] <= room:
            return costs[0]
        if (large := self.fills(room)) is not None:
            return large
        for cost in costs[:4]:
            if cost < room and self.fills(room - cost, without=cost) is not None:
                return cost
        return max(fitting)

    def fill(self):
        room = self.capacity
        longest = max(piece[0] for piece in self.waiting)
        cost = longest if 2 * longest > self.capacity else self.waiting[0][0]
        row = []
        while cost is not None:
            row.append(tuple(self.take(cost)[3:]))
            room -= cost
            cost = self.choose(room) if room else None
        row.sort()
        texts = [piece[0] for piece in self.waiting if piece[1]]
        if room > self.slack and texts and max(texts) - room > self.slack:
            cost, _, _, sample, start, stop = self.take(max(texts), kinds=[True])
            self.tickets += 1
            middle = stop - (cost - room)
            self.waiting.insert(0, [cost - room, True, self.tickets, sample, middle, stop])
            row.append((sample, start, middle))
        self.rows.append(row)


@given(**SETTINGS)
@settings(deadline=None, max_examples=120)
def test_rows_equal_the_rules_followed_by_hand(
    documents, seq_len, num_latents, join_share, window, num_waiting
):
    lengths, rows = pack_small(documents, seq_len, num_latents, join_share, window, num_waiting)
    kinds = {sample: is_joined for is_joined, *_, pieces in rows for sample, _, _ in pieces}
    for first in range(0, len(documents), window):
        mine = range(first, min(first + window, len(documents)))
        joined = [sample for sample in mine if kinds.get(sample)]
        zeros = sum(sample not in kinds for sample in mine)
        assert abs(len(joined) - join_share * len(mine)) <= 1 + join_share * zeros
    for is_joined in (False, True):
        by_hand = ByHand(seq_len - is_joined, seq_len, is_joined, num_waiting)
        for sample, is_mine in sorted(kinds.items()):
            if is_mine == is_joined:
                positions = lengths.image_positions(sample, num_latents).tolist()
                by_hand.add(sample, lengths.length(sample, num_latents), positions)
        while by_hand.waiting:
            by_hand.fill()
        assert [pieces for kind, _, _, pieces in rows if kind == is_joined] == by_hand.rows


def padding(rows, seq_len):
    return 1 - sum(tokens for _, _, tokens, _ in rows) / (seq_len * len(rows))


def num_cuts(rows):
    return sum(start > 0 for *_, pieces in rows for _, start, _ in pieces)


def corpora_of(draws, num):
    tokens = np.clip(draws.lognormal(4.5, 0.8, num), 3, 4000).astype(int)
    text = [(int(n), []) for n in tokens]
    pairs = [(int(n), [0]) for n in draws.integers(8, 24, num)]
    interleaved = [
        (int(n), draws.integers(0, 999, draws.integers(1, 5)).tolist())
        for n in np.clip(draws.lognormal(5, 0.5, num), 20, 4000)
    ]
    return {"text": text, "pairs": pairs, "interleaved": interleaved}


@pytest.mark.parametrize("join_share", [0.0, 0.5])
def test_padding_stays_small_where_documents_are_short(join_share):
    bounds = {"text": 0.002, "pairs": 0.002, "interleaved": 0.01}
    for name, documents in corpora_of(np.random.default_rng(0), 3000).items():
        rows = packed_rows(
            lengths_of(documents), seq_len=512, num_latents=16, join_share=join_share
        )
        assert padding(rows, 512) < bounds[name] + 2 / len(rows)  # a last row of each kind
        assert abs(np.mean([is_joined for is_joined, *_ in rows]) - join_share) < 0.03


def test_documents_of_a_row_lie_near_each_other():
    documents = [(int(n), []) for n in np.random.default_rng(3).lognormal(4, 0.8, 40_000) + 2]
    rows = packed_rows(lengths_of(documents), seq_len=512, num_latents=16, join_share=0.0)
    spans = [pieces[-1][0] - pieces[0][0] for *_, pieces in rows if len(pieces) > 1]
    assert np.mean(spans) < 1.5 * pool.POOL
    firsts = [min(sample for sample, _, _ in pieces) for *_, pieces in rows]
    assert np.abs(np.diff(firsts)).mean() < pool.POOL


def test_texts_that_fit_are_cut_only_where_a_row_would_be_padded():
    halves = packed_rows(
        lengths_of([(30, []), (34, [])] * 50), seq_len=64, num_latents=4, join_share=0.0
    )
    assert num_cuts(halves) == 0
    assert [tokens for _, _, tokens, _ in halves] == [64] * 50
    awkward = packed_rows(lengths_of([(40, [])] * 64), seq_len=64, num_latents=4, join_share=0.0)
    assert sum(tokens for _, _, tokens, _ in awkward) == 40 * 64
    assert len(awkward) == 40
    assert num_cuts(awkward) > 0


def test_a_long_document_is_cut_at_its_images():
    # 20 tokens, an image of 6, 20 tokens, an image, 20 tokens; rows of 40.
    lengths = lengths_of([(60, [18, 38])])
    rows = packed_rows(lengths, seq_len=40, num_latents=4, join_share=0.0)
    assert sorted(pieces for *_, pieces in rows) == [[(0, 0, 19)], [(0, 19, 45)], [(0, 45, 72)]]


def test_no_row_holds_the_start_of_a_long_document_alone():
    # A picture first: 1 token, an image of 6, 59 tokens; rows of 40.
    lengths = lengths_of([(60, [0])])
    for join_share in (0.0, 1.0):
        rows = packed_rows(lengths, seq_len=40, num_latents=4, join_share=join_share)
        assert sorted(pieces for *_, pieces in rows) == [[(0, 0, 40)], [(0, 40, 66)]]


def test_a_document_of_very_many_rows_is_packed():
    lengths = lengths_of([(5, []), (1_000_000, []), (7, [])])
    cuts = defaultdict(list)
    for *_, tokens, pieces in packed_rows(lengths, seq_len=64, num_latents=4, join_share=0.0):
        assert tokens <= 64
        for sample, start, stop in pieces:
            cuts[sample].append((start, stop))
    stops = [stop for _, stop in cuts[1]]
    assert [start for start, _ in cuts[1]] == [0, *stops[:-1]]
    assert stops[-1] == 1_000_000


def test_an_image_that_fits_no_row_is_refused():
    with pytest.raises(UserError, match=r"model.num_latents 64: .* model.seq_len 64"):
        packed_rows(lengths_of([(5, [0])]), seq_len=64, num_latents=64, join_share=0.0)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.errors import UserError
from mllm.stream import pack
from tests.stream.documents import lengths_of, packed_rows

DOCUMENT = st.tuples(st.integers(2, 90), st.lists(st.integers(0, 100), max_size=4))
DROPPED = st.just((0, []))


@given(
    documents=st.lists(DOCUMENT | DROPPED, min_size=1, max_size=60),
    seq_len=st.integers(9, 64),
    num_latents=st.integers(1, 6),
    join_share=st.sampled_from([0.0, 0.3, 1.0]),
    window=st.sampled_from([4, 1000]),
)
@settings(deadline=None, max_examples=300)
def test_every_token_stands_once_and_no_image_is_cut(
    documents, seq_len, num_latents, join_share, window
):
    span = num_latents + 2
    lengths = lengths_of(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "WINDOW", window)
        rows = packed_rows(lengths, seq_len=seq_len, num_latents=num_latents, join_share=join_share)
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


def padding(rows, seq_len):
    return 1 - sum(tokens for _, _, tokens, _ in rows) / (seq_len * len(rows))


def num_cuts(rows):
    return sum(start > 0 for *_, pieces in rows for _, start, _ in pieces)


@pytest.mark.parametrize("join_share", [0.0, 0.5])
def test_padding_stays_small_where_documents_are_short(join_share):
    draws = np.random.default_rng(0)
    tokens = np.clip(draws.lognormal(4.5, 0.8, 3000), 3, 4000).astype(int)
    text = [(int(n), []) for n in tokens]
    pairs = [(int(n), [0]) for n in draws.integers(8, 24, 3000)]
    interleaved = [
        (int(n), draws.integers(0, 999, draws.integers(1, 5)).tolist())
        for n in np.clip(draws.lognormal(5, 0.5, 2000), 20, 4000)
    ]
    for documents in (text, pairs, interleaved):
        rows = packed_rows(
            lengths_of(documents), seq_len=512, num_latents=16, join_share=join_share
        )
        assert padding(rows, 512) < 0.02
        assert abs(np.mean([is_joined for is_joined, *_ in rows]) - join_share) < 0.03


def test_texts_that_fit_are_cut_only_where_a_row_would_be_padded():
    halves = packed_rows(lengths_of([(30, []), (34, [])] * 50), seq_len=64, num_latents=4)
    assert num_cuts(halves) == 0
    assert [tokens for _, _, tokens, _ in halves] == [64] * 50
    awkward = packed_rows(lengths_of([(40, [])] * 64), seq_len=64, num_latents=4)
    assert sum(tokens for _, _, tokens, _ in awkward) == 40 * 64
    assert len(awkward) == 40
    assert num_cuts(awkward) > 0


def test_a_long_document_is_cut_at_its_images():
    # 20 tokens, an image of 6, 20 tokens, an image, 20 tokens; rows of 40.
    rows = packed_rows(lengths_of([(60, [18, 38])]), seq_len=40, num_latents=4)
    assert sorted(pieces for *_, pieces in rows) == [[(0, 0, 19)], [(0, 19, 45)], [(0, 45, 72)]]


def test_an_image_that_fits_no_row_is_refused():
    with pytest.raises(UserError, match=r"model.num_latents 64: .* model.seq_len 64"):
        packed_rows(lengths_of([(5, [0])]), seq_len=64, num_latents=64)

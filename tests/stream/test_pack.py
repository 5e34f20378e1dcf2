import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.errors import UserError
from mllm.stream import pack
from mllm.stream.pack import plan

DOCUMENT = st.tuples(st.integers(2, 90), st.lists(st.integers(0, 100), max_size=4))


def arrays(documents):
    """[(text tokens, offsets of images)] as `plan` takes it."""
    offsets = [sorted(1 + o % (tokens - 1) for o in images) for tokens, images in documents]
    starts = np.cumsum([0, *map(len, offsets)])
    flat = np.array([o for row in offsets for o in row], dtype=np.int64)
    return np.array([tokens for tokens, _ in documents]), starts, flat


def positions_of_images(documents, span):
    text, starts, flat = arrays(documents)
    return [
        [int(o) + n * span for n, o in enumerate(flat[starts[i] : starts[i + 1]])]
        for i in range(len(text))
    ]


def pieces(packed, row):
    run = slice(packed.row_starts[row], packed.row_starts[row + 1])
    columns = (packed.piece_samples[run], packed.piece_starts[run], packed.piece_stops[run])
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=60),
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "WINDOW", window)
        packed = plan(
            *arrays(documents), seq_len=seq_len, num_latents=num_latents, join_share=join_share
        )
    lengths = [tokens + len(images) * span for tokens, images in documents]
    image_positions = positions_of_images(documents, span)
    seen = [[] for _ in documents]
    for row in range(packed.num_rows):
        used = num_images = 0
        row_pieces = pieces(packed, row)
        for number, (sample, start, stop) in enumerate(row_pieces):
            seen[sample].append((start, stop))
            used += stop - start
            if packed.is_joined[row]:
                used -= start == 0
                used += stop < lengths[sample] and number + 1 < len(row_pieces)
            for position in image_positions[sample]:
                inside = max(0, min(stop, position + span) - max(start, position))
                assert inside in (0, span), "an image is cut"
                num_images += inside == span
        used += packed.is_joined[row]
        assert used == packed.row_tokens[row] <= seq_len
        assert num_images == packed.row_images[row]
    for sample, length in enumerate(lengths):
        cuts = sorted(seen[sample])
        assert [start for start, _ in cuts] == [0, *[stop for _, stop in cuts[:-1]]]
        assert cuts[-1][1] == length
        if documents[sample][1] and length <= seq_len:
            assert len(cuts) == 1, "a document with images that fits a row was cut"
    assert packed.num_cuts == sum(len(cuts) - 1 for cuts in seen)


@pytest.mark.parametrize("join_share", [0.0, 0.5])
def test_padding_stays_small_where_documents_are_short(join_share):
    draws = np.random.default_rng(0)
    lengths = np.clip(draws.lognormal(4.5, 0.8, 3000), 3, 4000).astype(int)
    text = [(int(n), []) for n in lengths]
    pairs = [(int(n), [0]) for n in draws.integers(8, 24, 3000)]
    interleaved = [
        (int(n), draws.integers(0, 999, draws.integers(1, 5)).tolist())
        for n in np.clip(draws.lognormal(5, 0.5, 2000), 20, 4000)
    ]
    for documents in (text, pairs, interleaved):
        packed = plan(*arrays(documents), seq_len=512, num_latents=16, join_share=join_share)
        assert 1 - packed.row_tokens.sum() / (512 * packed.num_rows) < 0.02
        assert abs(packed.is_joined.mean() - join_share) < 0.03


def test_texts_that_fit_are_cut_only_where_a_row_would_be_padded():
    halves = plan(*arrays([(30, []), (34, [])] * 50), seq_len=64, num_latents=4)
    assert halves.num_cuts == 0
    assert halves.row_tokens.tolist() == [64] * 50
    awkward = plan(*arrays([(40, [])] * 64), seq_len=64, num_latents=4)
    assert awkward.row_tokens.sum() == 40 * 64
    assert awkward.num_rows == 40
    assert awkward.num_cuts > 0


def test_a_long_document_is_cut_at_its_images():
    # 20 tokens, an image of 6, 20 tokens, an image, 20 tokens; rows of 40.
    packed = plan(*arrays([(60, [19, 39])]), seq_len=40, num_latents=4)
    cuts = sorted(
        (start, stop) for row in range(packed.num_rows) for _, start, stop in pieces(packed, row)
    )
    assert cuts == [(0, 20), (20, 46), (46, 72)]


def test_a_plan_is_the_same_every_time_and_leaves_out_dropped_samples():
    documents = [(int(n), []) for n in np.random.default_rng(1).integers(3, 200, 500)]
    text, starts, flat = arrays(documents)
    text[7] = 0
    one, two = (plan(text, starts, flat, seq_len=64, num_latents=4) for _ in range(2))
    assert all(
        np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )
    assert 7 not in one.piece_samples


def test_an_image_that_fits_no_row_is_refused():
    with pytest.raises(UserError, match=r"model.num_latents 64: .* model.seq_len 64"):
        plan(*arrays([(5, [0])]), seq_len=64, num_latents=64)

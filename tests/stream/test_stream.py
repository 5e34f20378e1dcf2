from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.reader import Corpus
from mllm.errors import BadSample, UserError
from mllm.images import open_picture, to_pixels
from mllm.stream.deal import deal
from mllm.stream.describe import describe
from mllm.stream.encode import encode
from mllm.stream.permute import epoch_row, hash_key, mix
from mllm.stream.source import Source
from tokenizer.specials import BOI_ID, BOS_ID, EOS_ID, PAD_ID, SLOT_ID

SPLITS = [(1, 8), (1, 4), (1, 1), (2, 4), (2, 2), (4, 1), (8, 1)]  # world size, micro-batch size
SEED = 5  # of tests/stream/conftest.py
ALONE = dict(world_size=1, micro_batch_size=4)
TENSORS = (
    *("token_ids", "target_ids", "loss_mask", "positions", "document_ids", "slot_mask"),
    "row_seeds",
)


def global_rows(stream, step, world_size, micro_batch_size):
    """Every row of a step, put together from its ranks: row number to its tensors and pixels."""
    rows = {}
    for micro_step in range(stream.grad_accum_steps(world_size, micro_batch_size)):
        for rank in range(world_size):
            batch = stream.batch(
                step,
                micro_step,
                rank=rank,
                world_size=world_size,
                micro_batch_size=micro_batch_size,
            )
            first_image = 0
            for b, info in enumerate(batch.rows):
                images = slice(first_image, first_image + info.images)
                first_image = images.stop
                rows[info.row] = {
                    **{name: getattr(batch, name)[b].tolist() for name in TENSORS},
                    "source": stream.source_names[batch.source_ids[b]],
                    "samples": info.samples,
                    "pixels": batch.pixels[images].tolist(),
                    "seeds": batch.image_seeds[images],
                }
            assert first_image == batch.num_images
    return [rows[row] for row in range(stream.global_batch_size)]


@given(split=st.sampled_from(SPLITS[1:]), step=st.integers(0, 10**9))
@settings(deadline=None, max_examples=15)
def test_any_split_over_ranks_and_micro_steps_gives_the_same_global_rows(stream, split, step):
    assert global_rows(stream, step, *split) == global_rows(stream, step, *SPLITS[0])


def test_rows_equal_a_brute_force_that_counts_from_the_start(stream):
    """Walks the run row by row, with a shuffled list of rows per epoch and no closed form."""
    used = Counter()
    pattern = stream.order.mixtures[-1].pattern.tolist()

    @cache
    def order(source_id, epoch):
        num_rows = stream.sources[source_id].plan.num_rows
        base = np.uint64(hash_key("order", SEED, stream.source_names[source_id]))
        key = mix(base ^ mix(np.array([epoch], dtype=np.uint64)))
        rows = [epoch_row(np.array([p]), np.array([num_rows]), key)[0] for p in range(num_rows)]
        assert sorted(rows) == list(range(num_rows))
        return rows

    for step in range(40):
        rows = stream.rows(step).order
        for i in range(stream.global_batch_size):
            source_id = pattern[(step * stream.global_batch_size + i) % len(pattern)]
            num_rows = stream.sources[source_id].plan.num_rows
            epoch, position = divmod(used[source_id], num_rows)
            assert rows.source_ids[i] == source_id
            assert rows.rows[i] == order(source_id, epoch)[position]
            assert rows.epochs[i] == epoch
            used[source_id] += 1


def test_every_sample_comes_once_per_epoch_and_source(stream):
    num_steps = 40
    seen = {name: Counter() for name in stream.source_names}
    rows_left = {s.name: 2 * s.plan.num_rows for s in stream.sources}  # two whole epochs
    pieces = {}
    for source in stream.sources:
        samples = source.plan.piece_samples.tolist()
        pieces[source.name] = Counter(source.corpus.key(sample) for sample in samples)
    step = 0
    while any(rows_left.values()):
        for info in stream.row_infos(step, world_size=1, micro_batch_size=8):
            if rows_left[info.source]:
                rows_left[info.source] -= 1
                seen[info.source].update(info.samples)
        step += 1
        assert step < 50 * num_steps
    for name, counts in seen.items():
        assert counts == Counter({key: 2 * n for key, n in pieces[name].items()})
        corpus = next(s.corpus for s in stream.sources if s.name == name)
        assert set(counts) == set(corpus.keys)


def test_a_packed_document_is_the_document_alone(world, stream):
    corpora = {name: Corpus(getattr(world, name)) for name in stream.source_names}
    checked = 0
    for step in range(6):
        batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=8)
        image = 0
        for b, info in enumerate(batch.rows):
            corpus = corpora[info.source]
            ids = batch.token_ids[b]
            if batch.document_ids[b].max() == 0 and len(info.samples) > 1:
                image += info.images
                continue  # joined: its own test
            for number, key in enumerate(info.samples):
                place = (batch.document_ids[b] == number).nonzero()[:, 0]
                tokens = ids[place]
                assert batch.positions[b][place].tolist() == list(range(len(place)))
                alone = encode(corpus.document(corpus.keys.index(key)), world.tokenizer, 4)
                if tokens[0] != BOS_ID or tokens[-1] != EOS_ID:
                    image += int((tokens == BOI_ID).sum())
                    continue  # a piece of a cut document
                checked += 1
                assert tokens.tolist() == alone.token_ids.tolist()
                assert batch.target_ids[b][place[:-1]].tolist() == alone.token_ids[1:].tolist()
                assert batch.loss_mask[b][place[:-1]].tolist() == alone.is_scored[1:].tolist()
                assert not batch.loss_mask[b][place[-1]]
                for picture in alone.images:
                    pixels = to_pixels(open_picture(picture), 16, "squash")
                    assert np.array_equal(batch.pixels[image].numpy(), pixels)
                    image += 1
        assert image == batch.num_images
    assert checked > 50


def test_padding_is_unscored_and_belongs_to_no_document(stream):
    for step in range(5):
        batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=8)
        is_padding = batch.document_ids == -1
        assert (batch.token_ids[is_padding] == PAD_ID).all()
        assert not batch.loss_mask[is_padding].any()
        assert torch.equal(batch.slot_mask, batch.token_ids == SLOT_ID)
        assert batch.slot_mask.sum() == 4 * batch.num_images
        assert not (batch.loss_mask & (batch.target_ids < 16) & (batch.target_ids != EOS_ID)).any()
        for b, info in enumerate(batch.rows):
            assert info.tokens == int((~is_padding[b]).sum())
            assert info.scored_tokens == int(batch.loss_mask[b].sum())


def test_a_joined_row_is_one_context(world, build):
    stream = build(sources=[Source("pairs", world.pairs, 1, 1.0)])
    corpus = Corpus(world.pairs)
    for step in range(3):
        batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=8)
        for b, info in enumerate(batch.rows):
            expected = [BOS_ID]
            for key in info.samples:
                document = corpus.document(corpus.keys.index(key))
                expected += encode(document, world.tokenizer, 4).token_ids[1:].tolist()
            used = len(expected)
            assert batch.token_ids[b, :used].tolist() == expected
            assert batch.positions[b, :used].tolist() == list(range(used))
            assert (batch.document_ids[b, :used] == 0).all()
            assert (batch.document_ids[b, used:] == -1).all()
            assert expected.count(EOS_ID) == len(info.samples)


def test_joined_rows_of_cut_documents_keep_their_divider_and_do_not_score_it(world, build):
    stream = build(
        sources=[Source("interleaved", world.interleaved, 1, 1.0)], seq_len=48, global_batch_size=4
    )
    assert describe(stream, **ALONE)["sources"]["interleaved"]["cuts"] > 10
    for step in range(stream.sources[0].plan.num_rows // 4):
        batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=4)
        for b, info in enumerate(batch.rows):
            row = batch.token_ids[b, : info.tokens].tolist()
            assert row.count(BOS_ID) == 1 and row[0] == BOS_ID
            # Dividers: between any two pieces one </s>; after the last piece perhaps one more.
            assert row.count(EOS_ID) - (row[-1] == EOS_ID) == len(info.samples) - 1


def test_order_depends_on_the_seed_and_rows_do_not(build):
    one, two = build(seed=1), build(seed=2)
    first = [i.samples for i in one.row_infos(0, world_size=1, micro_batch_size=8)]
    assert first != [i.samples for i in two.row_infos(0, world_size=1, micro_batch_size=8)]
    for a, b in zip(one.sources, two.sources, strict=True):
        assert np.array_equal(a.plan.piece_samples, b.plan.piece_samples)
    assert one.state.fixed == two.state.fixed
    assert one.state != two.state
    assert one.fingerprint != build(seq_len=200).fingerprint


def test_realised_token_shares_are_the_weights(stream):
    wanted = {"pairs": 0.5, "text": 0.5, "interleaved": 0.2, "vqa": 0.2}
    for name, entry in describe(stream, **ALONE)["sources"].items():
        assert entry["token_share"] == pytest.approx(wanted[name] / 1.4, rel=0.01)
    rows = describe(stream, **ALONE)["sources"]
    assert sum(entry["row_share"] for entry in rows.values()) == pytest.approx(1)


def test_weights_in_rows_are_shares_of_rows(world, build):
    sources = [Source("pairs", world.pairs, 3), Source("text", world.text, 1)]
    stream = build(sources=sources, unit="rows")
    assert stream.order.mixtures[-1].counts.tolist() == [3, 1]
    names = [i.source for i in stream.row_infos(7, world_size=1, micro_batch_size=8)]
    assert Counter(names) == {"pairs": 6, "text": 2}


def test_a_broken_picture_is_masked_in_place(world, build, broken_pairs):
    lines = []
    sources = [Source("pairs", broken_pairs, 1)]
    sound = build(sources=[Source("pairs", world.pairs, 1)])
    stream = build(sources=sources)
    key = Corpus(world.pairs).key(3)
    num_checked = 0
    for step in range(3):
        one = sound.batch(step, rank=0, world_size=1, micro_batch_size=8)
        two = stream.batch(step, rank=0, world_size=1, micro_batch_size=8)
        lines += two.bad_samples
        assert [row.samples for row in one.rows] == [row.samples for row in two.rows]
        assert torch.equal(one.token_ids, two.token_ids)
        for b, info in enumerate(two.rows):
            number = info.samples.index(key) if key in info.samples else -2
            is_bad = two.document_ids[b] == number
            assert torch.equal(two.loss_mask[b], one.loss_mask[b] & ~is_bad)
            if key in info.samples:
                num_checked += 1
                image = sum(row.images for row in two.rows[:b]) + number
                assert one.pixels[image].any()
                assert not two.pixels[image].any()
    assert num_checked == len(lines) > 0
    assert lines[0]["key"] == key
    assert lines[0]["shard"] == "shard-000000.tar"
    assert "not a picture" in lines[0]["reason"]
    assert lines[0].keys() == {"shard", "key", "reason", "step"}


def test_a_sample_that_spells_no_document_is_masked_in_place(world, build, monkeypatch):
    stream = build(sources=[Source("vqa", world.vqa, 1, 0.5)])
    arguments = dict(rank=0, world_size=1, micro_batch_size=8)
    sound = stream.batch(0, **arguments)
    corpus = stream.sources[0].corpus
    read, bad_key = corpus.document, sound.rows[0].samples[1]

    def broken(sample):
        if corpus.key(sample) == bad_key:
            raise BadSample("not JSON")
        return read(sample)

    monkeypatch.setattr(corpus, "document", broken)
    masked = stream.batch(0, **arguments)
    lines = masked.bad_samples
    assert torch.equal(masked.document_ids, sound.document_ids)
    assert torch.equal(masked.positions, sound.positions)
    assert masked.num_images == sound.num_images - len(lines)
    assert masked.slot_mask.sum() == 4 * masked.num_images
    is_changed = masked.token_ids != sound.token_ids
    assert (masked.token_ids[is_changed] == PAD_ID).all()
    assert not (masked.loss_mask[:, :-1] & is_changed[:, 1:]).any()
    assert {line["key"] for line in lines} == {bad_key}
    assert lines[0]["reason"] == "not JSON"


def test_a_failing_disk_is_tried_again_and_then_stops_the_run(world, build, monkeypatch):
    monkeypatch.setattr("mllm.stream.source.READ_BACK_OFF_SECONDS", 0.0)
    stream = build(sources=[Source("text", world.text, 1)])
    arguments = dict(rank=0, world_size=1, micro_batch_size=8)
    expected = stream.batch(0, **arguments).token_ids
    corpus, failures = stream.sources[0].corpus, iter([True, True])
    read = corpus.document

    def flaky(sample):
        if next(failures, False):
            raise OSError("input/output error")
        return read(sample)

    monkeypatch.setattr(corpus, "document", flaky)
    assert torch.equal(stream.batch(0, **arguments).token_ids, expected)
    failures = iter([True] * 3)
    with pytest.raises(UserError, match="after 3 attempts"):
        stream.batch(0, **arguments)


@given(
    num_images=st.lists(st.integers(0, 20), min_size=12, max_size=12),
    micro_batch_size=st.sampled_from([1, 2, 3, 4, 6, 12]),
)
@settings(deadline=None)
def test_rows_are_dealt_with_images_as_even_as_rows_allow(num_images, micro_batch_size):
    images = np.array(num_images)
    cells = deal(images, np.zeros(12, dtype=np.int64), micro_batch_size)
    assert sorted(cells.ravel()) == list(range(12))
    loads = images[cells].sum(axis=1)
    assert loads.max() - loads.min() <= images.max() - images.min()


def test_image_seeds_belong_to_the_sample_and_the_epoch(world, build):
    stream = build(sources=[Source("pairs", world.pairs, 1)], global_batch_size=4)
    rows_per_epoch = stream.sources[0].plan.num_rows
    by_epoch: dict[int, dict[str, int]] = {0: {}, 1: {}}
    for row in range(2 * rows_per_epoch):
        batch = stream.batch(row // 4, row % 4, rank=0, world_size=1, micro_batch_size=1)
        epoch = (row // 4 * 4 + batch.rows[0].row) // rows_per_epoch
        if epoch in by_epoch:
            by_epoch[epoch].update(zip(batch.rows[0].samples, batch.image_seeds, strict=True))
    shared = by_epoch[0].keys() & by_epoch[1].keys()
    assert len(shared) > 30
    assert all(by_epoch[0][key] != by_epoch[1][key] for key in shared)
    assert len(set(by_epoch[0].values())) == len(by_epoch[0])


def test_every_row_of_a_run_has_a_seed_of_its_own(stream, build):
    """The same row of a corpus as well, when its next epoch comes."""
    seeds = [
        stream.batch(step, rank=0, world_size=1, micro_batch_size=8).row_seeds for step in range(99)
    ]
    other = build(seed=SEED + 1).batch(0, rank=0, world_size=1, micro_batch_size=8).row_seeds
    assert len(set(torch.cat([*seeds, other]).tolist())) == 100 * 8


def test_sizes_that_do_not_divide_are_refused_with_the_nearest(stream):
    with pytest.raises(UserError, match=r"global_batch_size 8 .* 6 or 9, or .*micro_batch_size to"):
        stream.grad_accum_steps(1, 3)


def test_a_rank_without_images_gets_one_dummy(world, build):
    stream = build(sources=[Source("text", world.text, 1)])
    batch = stream.batch(0, rank=1, world_size=2, micro_batch_size=4)
    assert batch.num_images == 0
    assert batch.pixels.shape == (1, 3, 16, 16)
    assert not batch.pixels.any()
    assert batch.image_seeds == []


def test_mistakes_in_the_mixture_are_one_line(world, build):
    with pytest.raises(UserError, match="weight 0"):
        Source("text", world.text, 0)
    with pytest.raises(UserError, match="join_documents 2"):
        Source("text", world.text, 1, 2)
    with pytest.raises(UserError, match="its own name"):
        build(sources=[Source("a", world.text, 1), Source("a", world.pairs, 1)])
    with pytest.raises(UserError, match=r"data\.unit"):
        build(unit="images")


def test_the_token_lengths_are_measured_once(world, build, monkeypatch):
    build()

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("mllm.stream.measure.measure", fail)
    build(num_latents=9, seq_len=100)

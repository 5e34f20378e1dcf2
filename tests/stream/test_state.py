"""The stream's state: what a run may go on with, what it may not, and what stands in the file."""

import dataclasses
import json

import pytest

from mllm.errors import UserError
from mllm.stream.order import merged, stream_step
from mllm.stream.source import Source
from mllm.stream.state import StreamState, parse_windows

WHERE = "run/stream.json"


def resumed(build, before, step, **changes):
    """A stream of the changed settings, gone on at `step` of the run of `before`."""
    stream = build(**changes)
    saved = StreamState.from_json(json.loads(json.dumps(before.state.to_json())), WHERE)
    return stream, stream.resume(saved, step, WHERE)


def keys(stream, step):
    return [info.samples for info in stream.row_infos(step, world_size=1, micro_batch_size=2)]


def test_training_steps_pass_over_the_windows():
    windows = parse_windows(["5:7", "2:4", "3:5"])
    assert windows == ((2, 7),)
    assert [stream_step(step, windows) for step in range(5)] == [0, 1, 7, 8, 9]
    assert merged([(9, 10), (0, 1)]) == ((0, 1), (9, 10))
    for wrong in ("7:5", "5:5", "a:b", "5", "-1:3"):
        with pytest.raises(ValueError, match=r"data\.exclude_steps: '.*' is no window"):
            parse_windows([wrong])


def test_steps_of_a_window_are_never_trained_and_nothing_else_moves(build):
    plain, holed = build(), build(excluded_steps=((2, 5),))
    assert [keys(holed, step) for step in range(4)] == [keys(plain, s) for s in (0, 1, 5, 6)]


def test_a_window_may_come_at_the_resume_point_but_not_before_it(build):
    before = build()
    stream, notes = resumed(build, before, 4, excluded_steps=((4, 6),))
    assert notes == [] and keys(stream, 4) == keys(before, 6)
    assert keys(stream, 3) == keys(before, 3)
    for windows in (((3, 6),), ((0, 1), (4, 6))):
        with pytest.raises(UserError, match=r"data\.exclude_steps: .* has reached stream step 4"):
            resumed(build, before, 4, excluded_steps=windows)
    # Taking a window back is possible for as long as it lies ahead.
    again, _ = resumed(build, stream, 4)
    assert keys(again, 4) == keys(before, 4)
    with pytest.raises(UserError, match="4:6 differs"):
        resumed(build, stream, 5)


def test_a_changed_mixture_begins_a_segment_and_an_earlier_resume_drops_it(world, build):
    before = build()
    fewer = [Source("pairs", world.pairs, 1, 0.3), Source("text", world.text, 3)]
    stream, notes = resumed(build, before, 5, sources=fewer)
    assert len(notes) == 1 and "mixture changed: segment 2 of the stream begins at" in notes[0]
    assert [s.first_step for s in stream.state.segments] == [0, 5]
    assert len(stream.state.segments[0].sources) == 4
    # The state tells the earlier steps too, to a stream that has their sources.
    whole = build(state=stream.state)
    assert [keys(whole, s) for s in range(5)] == [keys(before, s) for s in range(5)]
    assert [keys(whole, s) for s in range(5, 9)] == [keys(stream, s) for s in range(5, 9)]
    with pytest.raises(UserError, match="which this mixture lacks"):
        stream.rows(0)
    third, notes = resumed(build, stream, 3)
    assert [s.first_step for s in third.state.segments] == [0] and notes == []
    unchanged, notes = resumed(build, stream, 7, sources=fewer)
    assert [s.first_step for s in unchanged.state.segments] == [0, 5] and notes == []


def test_a_new_seed_orders_the_epochs_that_begin_after_it(world, build):
    only = [Source("text", world.text, 1)]
    before = build(sources=only, global_batch_size=2)
    num_rows = before.sources[0].plan.num_rows
    stream, notes = resumed(build, before, 3, sources=only, global_batch_size=2, seed=77)
    assert "seed changed" in notes[0]
    begun = -(-num_rows // 2)
    assert [keys(stream, s) for s in range(3, begun - 1)] == [
        keys(before, s) for s in range(3, begun - 1)
    ]
    assert [keys(stream, s) for s in range(begun, begun + 9)] != [
        keys(before, s) for s in range(begun, begun + 9)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 200}, r"model\.seq_len changed since run/stream\.json .*192, now 200"),
        ({"num_latents": 5}, r"model\.num_latents changed"),
        ({"global_batch_size": 16}, r"train\.global_batch_size changed"),
        ({"score_image_start": True}, r"data\.score_image_start changed"),
    ],
)
def test_what_would_change_the_rows_is_refused_by_name(build, changes, message):
    with pytest.raises(UserError, match=message):
        resumed(build, build(), 2, **changes)


def test_a_name_stands_for_one_corpus_in_a_run(world, build):
    before = build(sources=[Source("a", world.pairs, 1)])
    for other in (Source("a", world.text, 1), Source("a", world.pairs, 1, 0.5)):
        with pytest.raises(UserError, match=r"of a changed .* give the source another name"):
            resumed(build, before, 1, sources=[other])


def test_what_is_no_state_is_one_line(stream):
    value = stream.state.to_json()
    assert StreamState.from_json(value, WHERE) == stream.state
    for broken in ({}, {**value, "segments": 3}, {**value, "excluded_steps": [[1]]}, []):
        with pytest.raises(UserError, match=r"run/stream\.json: no stream state") as caught:
            StreamState.from_json(broken, WHERE)
        assert "\n" not in str(caught.value)


def test_where_a_corpus_lies_is_no_part_of_its_mixture(stream):
    record = stream.state.segments[0]
    moved = dataclasses.replace(record.sources[0], path="/elsewhere")
    assert (
        dataclasses.replace(record, sources=(moved, *record.sources[1:])).mixture == record.mixture
    )

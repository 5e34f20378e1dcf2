"""Duplicates go, the first in input order stays, and nothing depends on how the work is cut."""

import io
import math
import random
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from corpora.pipeline import dedup, pairs
from corpora.pipeline.clusters import Clusters
from corpora.pipeline.dedup import DedupOptions, _tables, dedup_stages, removal_steps
from corpora.pipeline.fingerprints import Fingerprints
from corpora.pipeline.judge import read_drops
from mllm.errors import UserError
from tests.corpora.pipeline.records import (
    Units,
    deduplicated,
    dropped,
    encoded,
    record,
    run_stage,
    run_steps,
    scene,
)

VOCABULARY = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "st", "rk", "l")]
LOCAL = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def prose(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))


def edited(text: str, seed: int, words: int) -> str:
    """The text with so many of its words replaced."""
    rng, parts = random.Random(seed), text.split()
    for place in rng.sample(range(len(parts)), words):
        parts[place] = rng.choice(VOCABULARY)
    return " ".join(parts)


def ids(units):
    return [[each.id for each in unit] for unit in units]


def components(size, is_pair):
    """The smallest member of each element's component, by all pairs: the reference."""
    label = list(range(size))
    for one, other in combinations(range(size), 2):
        if is_pair(one, other):
            low, high = sorted((label[one], label[other]))
            label = [low if each == high else each for each in label]
    return label


# Exact


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("content", ["a", "other caption", "other picture", "text", "picture"]),
        ("text", ["a", "other caption", "picture"]),
        ("images", ["a", "other picture", "text"]),
    ],
)
def test_exact_duplicates_of_content_of_text_and_of_images(tmp_path, what, kept):
    one, two = encoded(scene(1)), encoded(scene(2))
    unit = [
        record("a", one, "a caption"),
        record("same", one, "a caption"),
        record("other caption", one, "another"),
        record("other picture", two, "a caption"),
        record("text", "a caption"),
        record("picture", one),
    ]
    assert ids(deduplicated(DedupOptions(exact=what), [unit], tmp_path)) == [kept]


def test_the_order_of_segments_and_where_they_are_cut_are_content(tmp_path):
    one = encoded(scene(1))
    unit = [
        record("a", "x", one, "y"),
        record("b", "x", "y", one),
        record("c", "xy", one),
        record("d", "", one, "xy"),
        record("e", "x", one, "y"),
    ]
    assert ids(deduplicated(DedupOptions(exact="content"), [unit], tmp_path)) == [list("abcd")]


def test_a_text_that_a_filter_rewrote_is_compared_as_it_will_be_written(tmp_path):
    one, two = record("one", "first words"), record("two", "second words")
    two.text = "first words"  # what C4's filter does; the layout still has the old text
    assert ids(deduplicated(DedupOptions(exact="content"), [[one, two]], tmp_path)) == [["one"]]


@LOCAL
@given(
    contents=st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=5),
    block=st.sampled_from([1, 3, 4_000_000]),
    units_per_share=st.integers(1, 4),
)
def test_exact_duplicates_are_those_of_all_pairs(
    tmp_path_factory, contents, block, units_per_share
):
    folder = tmp_path_factory.mktemp("exact")
    units = [
        [record(f"{u}-{n}", f"text {value}") for n, value in enumerate(values)]
        for u, values in enumerate(contents)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BLOCK", block)
        patch.setattr(dedup, "UNITS_PER_SHARE", units_per_share)
        left = deduplicated(DedupOptions(exact="text"), units, folder)
    flat = [each for unit in units for each in unit]
    label = components(len(flat), lambda i, j: flat[i].text == flat[j].text)
    firsts = {flat[n].id for n in range(len(flat)) if label[n] == n}
    assert ids(left) == [[r.id for r in unit if r.id in firsts] for unit in units]


def test_the_drop_names_who_stays_and_counts_by_reason(tmp_path):
    units = [[record("first", "some words")], [record("x", "y"), record("again", "some words")]]
    deduplicated(DedupOptions(exact="content"), units, tmp_path)
    drops = read_drops(tmp_path / "drops" / "duplicates" / "000001.json")
    assert (drops["kept"], drops["dropped"]) == (1, {"exact duplicate": 1})
    (example,) = drops["examples"]["exact duplicate"]
    assert (example["id"], example["survivor"]) == ("again", "first")


# Near duplicates of text


def near_corpus() -> tuple[list[list], list[str]]:
    """Three units with planted near-duplicates, and the ids that must be left."""
    texts = {f"t{n}": prose(n) for n in range(12)}
    units = [[record(key, texts[key]) for key in list(texts)[k::3]] for k in range(3)]
    units[0].append(record("copy of t1", edited(texts["t1"], 1, 2)))  # t1 is of unit 1: it goes
    units[1].insert(0, record("copy of t5", edited(texts["t5"], 2, 2)))  # before t5, of unit 2
    units[2].append(record("copy of t0", edited(texts["t0"], 3, 2)))
    units[2].append(record("half of t3", edited(texts["t3"], 4, 60)))
    units[2].append(record("short", "too short"))
    units[2].append(record("short again", "too short"))
    gone = {"t1", "t5", "copy of t0"}
    return units, [r.id for unit in units for r in unit if r.id not in gone]


def test_edited_texts_are_found_and_the_first_in_input_order_stays(tmp_path):
    units, expected = near_corpus()
    left = deduplicated(DedupOptions(near_text=True), units, tmp_path)
    assert [key for unit in ids(left) for key in unit] == expected
    assert dropped(tmp_path / "drops", "duplicates", 1) == {"near duplicate": 1}


def test_a_chain_of_edits_leaves_its_first(tmp_path):
    text = prose(0)
    chain = [text]
    for seed in range(6):
        chain.append(edited(chain[-1], seed, 2))
    # Backwards through the units: the pairs of the chain do not come in input order.
    units = [[record(str(n), chain[n])] for n in (3, 5, 0, 6, 2, 4, 1)]
    assert ids(deduplicated(DedupOptions(near_text=True), units, tmp_path)) == [["3"]] + [[]] * 6


class UnitsOfTask(PipelineStep):
    """Runs steps once for each unit of a task: what the import command does with tasks."""

    type, name = "RUN", "units of task"

    def __init__(self, steps, num_ranks: int, out: Path) -> None:
        super().__init__()
        self.steps, self.num_ranks, self.out = steps, num_ranks, out

    def run(self, data=None, rank=0, world_size=1):
        for unit in range(rank, self.num_ranks, world_size):
            left = run_steps(self.steps, unit, self.num_ranks)
            path = self.out / f"{unit:06d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(each.id for each in left))


def executed(options, units, folder: Path, tasks: int, workers: int) -> dict[str, str]:
    """The ids left in each unit, by datatrove's own local executor."""
    work, reader = folder / "work", Units(units)
    stages = [
        (s.name, s.steps, s.num_ranks) for s in dedup_stages(options, reader, work, len(units))
    ]
    last = [reader, *removal_steps(options, work, folder / "drops")]
    for name, steps, num_ranks in [*stages, ("removal", last, None)]:
        step = UnitsOfTask(steps, num_ranks or len(units), folder / "left" / name)
        LocalPipelineExecutor(
            [step],
            tasks=min(tasks, num_ranks or len(units)),
            workers=workers,
            logging_dir=str(folder / "logs" / name),
            start_method="fork",
        ).run()
    paths = sorted((folder / "left" / "removal").iterdir())
    return {path.name: path.read_text() for path in paths}


def test_any_number_of_tasks_leaves_the_same_records(tmp_path):
    units, _ = near_corpus()
    units[1].append(record("picture", encoded(scene(1)), "one"))
    units[2].append(record("smaller", encoded(scene(1).resize((80, 80))), "two"))
    options = DedupOptions(exact="content", near_text=True, near_buckets=5, images="perceptual")
    one = executed(options, units, tmp_path / "one", tasks=1, workers=1)
    three = executed(options, units, tmp_path / "three", tasks=3, workers=1)
    left = set("\n".join(one.values()).split("\n"))
    assert one == three
    assert {"picture", "copy of t5"} <= left and not {"smaller", "t5"} & left


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path):
    units, _ = near_corpus()
    options = DedupOptions(exact="content", near_text=True, images="perceptual")
    one = executed(options, units, tmp_path / "one", tasks=1, workers=1)
    assert executed(options, units, tmp_path / "two", tasks=2, workers=2) == one


# Images


def look_alikes(seed: int) -> list[bytes]:
    """A picture rescaled, recompressed, and made a little brighter."""
    picture = scene(seed)
    return [
        encoded(picture.resize((64, 64), Image.Resampling.LANCZOS)),
        encoded(picture.resize((400, 400), Image.Resampling.BICUBIC), "JPEG", quality=85),
        encoded(picture, "JPEG", quality=30),
        encoded(picture, "WEBP", quality=80),
        encoded(ImageEnhance.Brightness(picture).enhance(1.04)),
    ]


def test_rescaled_and_recompressed_images_are_found_and_different_ones_stay(tmp_path):
    firsts = [record(f"first {seed}", encoded(scene(seed))) for seed in range(12)]
    again = [
        record(f"again {seed} {n}", data)
        for seed in range(12)
        for n, data in enumerate(look_alikes(seed))
    ]
    left = deduplicated(DedupOptions(images="perceptual"), [firsts, again], tmp_path)
    assert ids(left) == [[each.id for each in firsts], []]
    assert dropped(tmp_path / "drops", "duplicates", 1) == {"all images are duplicates": 60}


def test_images_by_bytes_leave_the_rescaled(tmp_path):
    unit = [record("a", encoded(scene(1))), record("b", encoded(scene(1))), record("c", b"no")]
    unit += [record("d", look_alikes(1)[0]), record("e", b"no")]
    left = deduplicated(DedupOptions(images="exact"), [unit], tmp_path)
    assert ids(left) == [["a", "c", "d"]]


def test_one_shape_in_other_colours_is_another_picture(tmp_path):
    red, blue = (
        encoded(Image.merge("RGB", [scene(1).convert("L").point(lambda v, s=s: v * s) for s in c]))
        for c in ((1, 0.5, 0.2), (0.2, 0.5, 1))
    )
    grey = [imagehash.phash(picture) for picture in map(opened, (red, blue))]
    assert grey[0] - grey[1] <= 4  # the hash alone would take them for one
    unit = [record("red", red), record("blue", blue)]
    assert ids(deduplicated(DedupOptions(images="perceptual"), [unit], tmp_path)) == [
        ["red", "blue"]
    ]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def documents() -> list[list]:
    a, b, c = (encoded(scene(n)) for n in range(3))
    first = [record("ab", "one", a, "two", b), record("bc", "three", b, "four", c, "five")]
    return [first, [record("cb", "six", c, b, "seven"), record("none", "eight")]]


def test_only_a_document_whose_images_are_all_known_goes(tmp_path):
    left = deduplicated(DedupOptions(images="perceptual"), documents(), tmp_path)
    assert ids(left) == [["ab", "bc"], ["none"]]
    assert len(left[0][1].media) == 2


def test_known_images_leave_their_documents_when_asked(tmp_path):
    options = DedupOptions(images="perceptual", on_duplicate_image="drop_image")
    left = deduplicated(options, documents(), tmp_path)
    assert ids(left) == [["ab", "bc"], ["none"]]
    assert [media.media_bytes for media in left[0][1].media] == [encoded(scene(2))]
    drops = read_drops(tmp_path / "drops" / "duplicates" / "000000.json")
    assert drops["edited"] == {"image removed: duplicate": 1}


def test_an_image_does_not_survive_in_a_record_that_goes(tmp_path):
    picture, text = encoded(scene(1)), prose(1)
    unit = [record("a", text), record("gone", picture, text), record("stays", picture, prose(2))]
    options = DedupOptions(exact="text", images="exact")
    assert ids(deduplicated(options, [unit], tmp_path)) == [["a", "stays"]]


@LOCAL
@given(
    base=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    images=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.integers(0, 63), max_size=7),
            st.lists(st.sampled_from([0, 10, 20, 255]), min_size=2, max_size=2),
        ),
        max_size=24,
    ),
    cut=st.integers(0, 24),
    distance=st.integers(0, 5),
    block=st.sampled_from([2, 5, 4_000_000]),
    found=st.sampled_from([1, 2, 1_000_000]),
)
@example(  # a chain of colours, in one table, written a pair at a time
    base=[5],
    images=[(0, [], [0, 0]), (0, [], [10, 0]), (0, [], [20, 0])],
    cut=1,
    distance=0,
    block=4_000_000,
    found=1,
)
def test_close_hashes_are_those_of_all_pairs(
    tmp_path_factory, base, images, cut, distance, block, found
):
    """Random hashes a few bits around a few centres; in-place entries instead of pictures."""
    folder = tmp_path_factory.mktemp("close")
    looks = []
    for centre, flips, colour in images:
        value = base[centre % len(base)]
        for bit in flips:
            value ^= 1 << bit
        looks.append((value, [colour[0], *[7] * 10, colour[1]]))
    options = DedupOptions(images="perceptual", image_distance=distance)
    tables = _tables(options)[1:]  # without the one of bytes
    for unit, rows in enumerate((looks[:cut], looks[cut:])):
        write_tables(folder, tables, unit, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BLOCK", block)
        patch.setattr(pairs, "PAIRS", found)
        search = pairs.FindPairs(tables, 2, folder)
        for rank in range(search.num_ranks):
            search.run(None, rank, search.num_ranks)
    Clusters(folder).run()

    def is_pair(one, other):
        (a, shade), (b, tone) = looks[one], looks[other]
        close = max(abs(x - y) for x, y in zip(shade, tone, strict=True)) <= options.image_colours
        return (a ^ b).bit_count() <= distance and close

    label = components(len(looks), is_pair)
    first = min(cut, len(looks))
    place = [(0, n) if n < first else (1, n - first) for n in range(len(looks))]
    wanted = sorted((*place[n], *place[label[n]]) for n in range(len(looks)) if label[n] != n)
    removals = np.fromfile(folder / "removals" / "image.bin", "<u4").reshape(-1, 4)
    assert [tuple(row) for row in removals.tolist()] == wanted


def write_tables(folder, tables, unit, rows):
    """What `Fingerprints` writes for images of such looks, each in a record of its own."""
    (folder / "images").mkdir(exist_ok=True)
    np.save(folder / "images" / f"{unit:06d}.npy", np.ones(len(rows), np.int32))
    for table in tables:
        entries = np.zeros(len(rows), pairs.ENTRY)
        for n, (value, colour) in enumerate(rows):
            entries[n] = (value & table.mask, value, colour, n)
        path = pairs.table_path(folder, table, unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.sort(entries, order=["key", "check", "place"]).tofile(path)


@pytest.mark.parametrize("distance", range(9))
def test_tables_miss_no_pair_within_the_distance(distance):
    """The worst case of the pigeonhole: every way to spread the bits over the blocks."""
    tables = _tables(DedupOptions(images="perceptual", image_distance=distance))[1:]
    assert len(tables) == math.comb(distance + 2, 2)
    rng = random.Random(distance)
    for _ in range(500):
        flips = sum(1 << bit for bit in rng.sample(range(64), distance))
        assert any(flips & table.mask == 0 for table in tables)


# The whole


def test_options_that_are_off_make_no_stages(tmp_path):
    options = DedupOptions()
    assert dedup_stages(options, Units([[]]), tmp_path, 1) == []
    assert removal_steps(options, tmp_path, tmp_path) == []


def test_units_without_records_and_a_corpus_without_duplicates_pass(tmp_path):
    units = [[], [record("a", prose(1))], []]
    options = DedupOptions(exact="content", near_text=True, images="perceptual")
    assert ids(deduplicated(options, units, tmp_path)) == [[], ["a"], []]


def test_an_interrupted_unit_is_done_again_without_a_trace(tmp_path):
    units, expected = near_corpus()
    options = DedupOptions(exact="content", near_text=True)
    stages = dedup_stages(options, Units(units), tmp_path / "work", len(units))
    fingerprints = next(s for s in stages[0].steps if isinstance(s, Fingerprints))
    half = fingerprints.run(iter(units[1]), 1, 3)
    next(half)
    half.close()  # killed in the middle of unit 1
    run_stage(stages[0], len(units))
    left = deduplicated(options, units, tmp_path)
    assert [key for unit in ids(left) for key in unit] == expected[:-1]  # both short texts are one


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_distance", 9), ("near_ngram", 0), ("exact", "all"), ("image_hash", "ahash")],
)
def test_impossible_options_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=setting):
        DedupOptions(**{setting: value})

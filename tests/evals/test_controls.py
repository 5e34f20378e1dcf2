import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corpora.document import ImageSegment, TextSegment
from evals.api import Exemplar, Prompt, Query
from evals.baselines import (
    neighbour_choices,
    pixel_distances,
    question_only,
    read_gallery,
    unigram_log_probs,
)
from evals.controls import blinded, derange, with_pictures_of
from evals.tasks.easy_vqa import EasyVqa
from evals.tasks.naming import Naming
from evals.tasks.text_loss import TextLoss
from tests.evals.conftest import COLOURS, FakeModel, png


def query(i: int, colour: str, gold: str) -> Query:
    return Query(f"q{i}", (ImageSegment(png(COLOURS[colour])), TextSegment("?")), gold)


def test_a_derangement_changes_every_picture_and_every_class():
    names = list(COLOURS)
    # 40 % of one picture, and classes that cut across pictures.
    queries = [query(i, names[0 if i < 8 else 1 + i % 7], f"class {i % 5}") for i in range(20)]
    donors = derange(queries, lambda q: q.gold, seed=0)
    assert donors is not None
    assert sorted(donor.id for donor in donors.values()) == sorted(q.id for q in queries)
    for q in queries:
        assert donors[q.id].images != q.images and donors[q.id].gold != q.gold
    assert derange(queries[::-1], lambda q: q.gold, seed=0) == donors
    assert derange(queries, lambda q: q.gold, seed=1) != donors


def test_two_classes_of_unequal_size_still_have_a_blind_control():
    """No exchange changes every class, but every picture can change."""
    queries = [query(i, name, f"class {i > 4}") for i, name in enumerate(COLOURS)]
    assert derange(queries, lambda q: q.gold, seed=0) is None
    prompts = blinded([Prompt((), q) for q in queries], lambda q: q.gold, seed=0)
    assert prompts is not None
    assert all(p.query.images != q.images for p, q in zip(prompts, queries, strict=True))


def test_where_no_exchange_exists_there_is_no_control():
    alike = [query(i, "red", f"class {i}") for i in range(4)]
    assert derange(alike, lambda q: q.id, seed=0) is None
    assert derange(alike[:1], lambda q: q.id, seed=0) is None
    one_class = [query(i, name, "same") for i, name in enumerate(COLOURS)]
    assert derange(one_class, lambda q: q.gold, seed=0) is None


def test_the_exchange_leaves_text_gold_and_shots_alone():
    asked, donor = query(0, "red", "a"), query(1, "blue", "b")
    swapped = with_pictures_of(asked, donor)
    assert swapped.images == donor.images and swapped.gold == "a" and swapped.id == asked.id
    assert swapped.segments[1] == asked.segments[1]
    shot = Exemplar("e", asked.segments)
    assert Prompt((shot,), swapped).shots == (shot,)


def test_distances_equal_brute_force():
    draws = np.random.default_rng(0)
    left = draws.integers(0, 256, (5, 48), dtype=np.uint8)
    right = draws.integers(0, 256, (700, 48), dtype=np.uint8)
    brute = (((left[:, None].astype(float) - right[None]) / 255) ** 2).sum(axis=2)
    np.testing.assert_allclose(pixel_distances(left, right), brute, rtol=1e-4)


def test_a_candidate_is_scored_by_its_nearest_training_picture():
    distances = np.array([[5.0, 1.0, 2.0, 9.0], [5.0, 4.0, 2.0, 9.0]])
    answers = ["cat", "cat", "dog", "owl"]
    lists = [["dog", "cat", "bee"], ["owl", "cat", "bee"]]
    assert neighbour_choices(distances, answers, lists) == [1, 1]
    assert neighbour_choices(distances[:1], answers, [["bee", "ant"]]) == [None]


def test_pixel_neighbour_of_plain_squares_is_right_and_uses_the_models_lists(
    data_dir: Path, fake: FakeModel
):
    naming = Naming(data_dir)
    queries = [naming.query(query_id) for query_id in naming.ids()]
    baselines = naming.baselines(queries, fake)
    assert baselines.others == {"pixel neighbour": 100.0}
    assert baselines.chance == pytest.approx(20.0)
    assert read_gallery(data_dir / "eval/naming_support", 16, "squash").pixels.shape == (40, 768)


def test_names_without_training_pictures_are_never_the_neighbour(data_dir: Path, fake: FakeModel):
    naming = Naming(data_dir)
    queries = [naming.query(query_id) for query_id in naming.ids()]
    for q in queries:
        q.meta["candidates"] = tuple(f"no {name}" for name in q.meta["candidates"][:4]) + (q.gold,)
    assert naming.baselines(queries, fake).others == {"pixel neighbour": 100.0}
    unknown = [
        replace(q, gold="a fog", meta={"candidates": ("a fog", "a red square")}) for q in queries
    ]
    assert naming.baselines(unknown, fake).others == {}  # not one right name was ever trained


def test_the_right_name_is_not_always_at_one_place(data_dir: Path):
    naming = Naming(data_dir)
    queries = [naming.query(query_id) for query_id in naming.ids()]
    places = {q.meta["candidates"].index(q.gold) for q in queries}
    assert len(places) > 2
    assert [q.meta["candidates"] for q in queries] == [
        Naming(data_dir).query(q.id).meta["candidates"] for q in queries
    ]


def test_question_only_answers_as_training_mostly_did(data_dir: Path, fake: FakeModel):
    answer = question_only([("c?", "red"), ("c?", "red"), ("c?", "blue"), ("r?", "no")])
    assert (answer("c?"), answer("r?"), answer("never asked?")) == ("red", "no", "red")
    task = EasyVqa(data_dir)
    baselines = task.baselines([task.query(query_id) for query_id in task.ids()], fake)
    # 20 questions over 8 colours; training says red, which is right for vqa000, 008 and 016.
    assert baselines.others["question only"] == pytest.approx(15.0)
    assert baselines.majority == pytest.approx(15.0)
    few = task.baselines([task.query("vqa000")], fake)
    assert few.others["question only"] == 100.0
    assert few.notes["question only, whole split"] == pytest.approx(15.0)
    assert baselines.chance == pytest.approx(100 / 3)  # red, blue and no were seen


def test_unigram_loss_is_the_cross_entropy_of_training_frequencies(data_dir: Path, fake: FakeModel):
    log_probs = unigram_log_probs([[0, 0, 1], [0]], vocab_size=4)
    np.testing.assert_allclose(np.exp(log_probs), [4 / 8, 2 / 8, 1 / 8, 1 / 8])
    task = TextLoss(data_dir)
    loss = task.baselines([task.query(i) for i in task.ids()], fake).others["unigram"]
    assert 2.0 < loss < math.log(256)

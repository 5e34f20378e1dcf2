"""How exemplars are chosen other than at random: by class, by likeness, by file."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.document import ImageSegment, TextSegment
from evals.api import Exemplar, Query, Support
from evals.likeness import rank_by_image, rank_by_text
from evals.run import CellOptions, run_cell
from evals.select import by_hash
from evals.shots import Selection, balanced_order, build_prompts, draw_shots, limited, read_fixed
from evals.tasks.naming import Naming
from mllm.errors import UserError
from tests.evals.conftest import COLOURS, FakeModel, colour_of, png
from tests.evals.test_run import rows_of


def support_of(answers: list[str]) -> Support:
    exemplars = {
        f"e{i:02d}": Exemplar(f"e{i:02d}", (TextSegment(f"question {i}"),), f" {answer}")
        for i, answer in enumerate(answers)
    }
    return Support(tuple(sorted(exemplars)), "".join(answers), exemplars.__getitem__)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.text(max_size=5))
def test_a_balanced_order_takes_each_class_in_turn(answers: list[str], key: str):
    order = list(balanced_order(key, support_of(answers)))
    assert sorted(order) == list(range(len(answers)))
    for end in range(1, len(order) + 1):
        taken = Counter(answers[i] for i in order[:end])
        left = Counter(answers[i] for i in order[end:])
        # No class is two ahead of one that still has members.
        assert max(taken.values()) - min((taken[name] for name in left), default=99) <= 1


def test_a_support_limit_is_nested_and_changes_the_draw():
    support = support_of(list("abcdefghij"))
    assert limited(support, 20) is limited(support, None) is support
    assert set(limited(support, 3).ids) < set(limited(support, 6).ids) < set(support.ids)
    assert limited(support, 3).ids == tuple(sorted(by_hash(support.ids)[:3]))
    assert len({limited(support, n).fingerprint for n in (3, 6, 10)}) == 3


def test_the_likest_picture_stands_last_and_fewer_shots_are_the_last_ones(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    naming = Naming(data_dir)
    rank = rank_by_image(naming.support(), fake, tmp_path)
    assert len(list(tmp_path.glob("features-*.npy"))) == 1
    settings = {"seed": 0, "task": "naming", "split": "final"}
    chosen = Selection("rices_image")
    for query_id in naming.ids()[:8]:
        query = naming.query(query_id)
        drawn = [
            draw_shots(
                query, naming.support(), num_shots=k, selection=chosen, rank=rank, **settings
            )
            for k in (2, 4)
        ]
        colours = [colour_of(shot.images[0]) for shot in drawn[1]]
        assert colours == [colour_of(query.images[0])] * 4
        assert drawn[1][-2:] == drawn[0]


def test_likeness_equals_brute_force(fake: FakeModel, data_dir: Path, tmp_path: Path):
    draws = np.random.default_rng(0)
    features = draws.normal(size=(30, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pictures = [png(COLOURS["red"], mark=i) for i in range(30)]
    by_picture = dict(zip(pictures, features, strict=True))
    fake.image_features = lambda given: np.stack([by_picture[p] for p in given])  # type: ignore[method-assign]
    exemplars = {f"{i:02d}": Exemplar(f"{i:02d}", (ImageSegment(pictures[i]),)) for i in range(20)}
    support = Support(tuple(exemplars), "f", exemplars.__getitem__)
    for _ in range(2):  # the second reads its features from the file
        rank = rank_by_image(support, fake, tmp_path)
        for i in range(20, 30):
            order = rank(Query("q", (ImageSegment(pictures[i]),), gold=""))
            assert order == sorted(range(20), key=lambda j: -float(features[j] @ features[i]))


def test_words_that_are_rare_decide_the_likeness_of_texts():
    texts = ["what colour is the owl?", "what colour is the house?", "is the owl asleep?"]
    exemplars = {str(i): Exemplar(str(i), (TextSegment(text),)) for i, text in enumerate(texts)}
    rank = rank_by_text(Support(tuple(exemplars), "f", exemplars.__getitem__))
    assert rank(Query("q", (TextSegment("where is the house?"),), gold=""))[0] == 1
    assert rank(Query("q", (TextSegment("asleep?"),), gold=""))[0] == 2
    assert rank(Query("q", (TextSegment("zebra"),), gold="")) == [0, 1, 2]


def test_fixed_shots_come_in_the_order_of_their_file(data_dir: Path, tmp_path: Path):
    path = tmp_path / "shots.txt"
    path.write_text("﻿train003\r\ntrain001\n\ntrain007\n", encoding="utf-8")
    assert read_fixed(path) == ("train003", "train001", "train007")
    naming = Naming(data_dir)
    query = naming.query(naming.ids()[0])
    settings = {"seed": 0, "task": "naming", "split": "final", "num_shots": 2}
    selection = Selection("fixed", read_fixed(path))
    shots = draw_shots(query, naming.support(), selection=selection, **settings)
    assert [shot.id for shot in shots] == ["train003", "train001"]
    with pytest.raises(UserError, match="'absent' is no sample of the support set"):
        draw_shots(query, naming.support(), selection=Selection("fixed", ("absent",)), **settings)
    path.write_text('["a", "a"]')
    with pytest.raises(UserError, match="names 'a' twice"):
        read_fixed(path)
    path.write_text("[1")
    with pytest.raises(UserError, match="not valid JSON"):
        read_fixed(path)


def test_text_shots_never_show_the_query_under_another_key():
    support = support_of(["a"] * 5)
    query = Query("other key", (TextSegment("question 2"),), gold="a")
    for seed in range(20):
        shots = draw_shots(query, support, seed=seed, task="t", split="s", num_shots=4)
        assert "e02" not in [shot.id for shot in shots]


@pytest.mark.parametrize("how", ["random", "balanced", "rices_image", "rices_text"])
def test_every_selection_is_a_function_of_the_query_alone(
    how: str, data_dir: Path, fake: FakeModel, tmp_path: Path
):
    naming = Naming(data_dir)
    queries = [naming.query(query_id) for query_id in naming.ids()]
    rank = {
        "rices_image": lambda: rank_by_image(naming.support(), fake, tmp_path),
        "rices_text": lambda: rank_by_text(naming.support()),
    }.get(how, lambda: None)()

    def shots(asked: list[Query]) -> dict[str, list[str]]:
        prompts = build_prompts(
            asked,
            naming.support,
            seed=0,
            task="naming",
            split="final",
            num_shots=3,
            separator="eos",
            selection=Selection(how),  # type: ignore[arg-type]
            rank=rank,
        )
        return {p.query.id: [shot.id for shot in p.shots] for p in prompts}

    alone = {key: ids for query in queries for key, ids in shots([query]).items()}
    random.Random(0).shuffle(queries)
    assert shots(queries) == alone


def test_zero_star_shows_two_texts_without_pictures(
    data_dir: Path, fake: FakeModel, tmp_path: Path
):
    options = CellOptions(0, is_textual=True, limit=6, batch_size=4)
    cell = run_cell(Naming(data_dir), fake, options, tmp_path)
    assert (cell["shots"], cell["num_shots"]) == ("0*", 0)
    rows = rows_of(tmp_path / "naming_final/k0star/seed0/samples.jsonl")
    assert all(len(row["shots"]) == 2 and row["n_images"] == 1 for row in rows)
    bare = run_cell(Naming(data_dir), fake, replace(options, is_textual=False), tmp_path)
    assert bare["shots"] == "0" and bare["settings"] != cell["settings"]

"""The demo corpus's evaluation sets: nothing leaks, every question has one right answer."""

import itertools
import json
import re
from collections import Counter

import pytest

from corpora.demo.chance import in_final_half
from corpora.demo.evaluations import questions, raven_puzzles, sentiment
from corpora.demo.evaluations.raven_puzzles import (
    Attribute,
    bisected,
    follows_a_rule,
    read_cell,
    read_puzzle,
    vote_accuracy,
    with_value,
    wrong_value,
)
from corpora.demo.packages import Wheels

from . import tiny_packages
from .tiny_packages import documents, picture

TASKS = (
    "flags", "emoji_groups", "digits", "sentiment", "pages", "raven", "socialiqa", "quartz",
)  # fmt: skip
SPLITS = ("test", "development", "support")


def content(document) -> tuple:
    """What a document asks about: its pictures, or its words where it has none."""
    return document.images or (document.segments[0].text,)


@pytest.mark.parametrize("task", TASKS)
def test_no_content_of_a_test_set_is_in_another_set(demo_world, task):
    test, *others = (documents(demo_world.out, f"eval/{task}_{split}") for split in SPLITS)
    assert test and all(others)
    asked = {content(document) for document in test}
    shown = {content(document) for other in others for document in other}
    assert not asked & shown
    for documents_ in (test, *others):
        keys = [document.key for document in documents_]
        assert len(set(keys)) == len(keys)


def test_test_sets_show_only_artwork_that_training_never_shows(demo_world):
    kinds = ("pairs", "shapes", "interleaved", "vqa")
    names = [f"{kind}/{split}" for kind in kinds for split in ("train", "validation")]
    seen = {image for d in documents(demo_world.out, "flags/train", *names) for image in d.images}
    for task in ("flags_test", "flags_development", "emoji_groups_test", "nway_test"):
        for document in documents(demo_world.out, f"eval/{task}"):
            assert document.meta["source"] == "noto"
            assert not set(document.images) & seen, task


def test_flags_have_one_right_answer_of_five(demo_world):
    test = documents(demo_world.out, "eval/flags_test")
    for document in test + documents(
        demo_world.out, "eval/flags_support", "eval/flags_development"
    ):
        meta = document.meta
        assert len({meta["answer"], *meta["distractors"]}) == 5
        assert meta["name"] == f"flag: {meta['answer']}"
        caption = f"An image of the flag of {meta['answer']}"
        assert meta["captions"][0].startswith(caption)
    assert {in_final_half(document.meta["name"]) for document in test} == {True}
    described = [d for d in test if d.meta["description"]]
    assert described and all(d.meta["description"] in d.meta["captions"][0] for d in described)
    # The last two flags are drawn alike.
    alike = set(list(tiny_packages.FLAGS)[-2:])
    assert not alike & {document.meta["answer"] for document in test}
    for document in test:
        assert len(alike & {document.meta["answer"], *document.meta["distractors"]}) <= 2


def test_pairs_of_emoji_are_asked_both_ways_and_described_by_what_differs(demo_world):
    test = documents(demo_world.out, "eval/emoji_groups_test")
    answers = Counter((d.meta["pair"], d.meta["answer"]) for d in test)
    assert set(answers.values()) == {1} and len(answers) == 2 * len({pair for pair, _ in answers})
    numbers = {picture("noto", n): name for n, name in enumerate(tiny_packages.NAMES)}
    for document in test:
        meta = document.meta
        assert meta["names"][meta["answer"]] == meta["name"] == numbers[document.images[0]]
        first, second = (set(words.split(", ")) for words in meta["descriptions"])
        assert first and second and not first & second
    development = {
        d.meta["name"] for d in documents(demo_world.out, "eval/emoji_groups_development")
    }
    assert not development & {d.meta["name"] for d in test}


def test_an_episode_shows_every_label_equally_often_in_each_round(demo_world):
    held_out = set(json.loads((demo_world.out / "concepts.json").read_bytes())["held_out_names"])
    training = " ".join(
        segment.text.lower()
        for kind in ("pairs", "text", "interleaved")
        for document in documents(demo_world.out, f"{kind}/train")
        for segment in document.segments
        if hasattr(segment, "text")
    )
    episodes = documents(demo_world.out, "eval/nway_test", "eval/nway_development")
    for document in episodes:
        meta = document.meta
        ways = meta["ways"]
        assert len(document.images) == 4 * ways + 1
        rounds = [meta["classes"][start : start + ways] for start in range(0, 4 * ways, ways)]
        assert all(sorted(classes) == list(range(ways)) for classes in rounds)
        assert len({label[0] for label in meta["labels"]}) == ways
        assert not any(label in training for label in meta["labels"])
        assert set(meta["names"]) <= held_out
        assert len(set(document.images)) == len(document.images) or ways == 2
        # A way's first exemplar is a picture of the very concept it is named for.
        numbers = {picture("twemoji", n): name for n, name in enumerate(tiny_packages.NAMES)}
        shown = zip(meta["classes"], document.images[:-1], strict=True)
        for place, image in shown:
            if image in numbers:
                assert numbers[image] == meta["names"][place]
        noto = tiny_packages.NAMES.index(meta["names"][meta["answer"]])
        assert document.images[-1] == picture("noto", noto)
    queries = [
        {d.images[-1] for d in documents(demo_world.out, f"eval/nway_{part}")}
        for part in ("test", "development")
    ]
    assert not queries[0] & queries[1]
    assert {d.meta["answer"] for d in episodes} == {0, 1}


def test_digits_are_as_many_of_each_and_are_the_digit_they_are_named(demo_world):
    for split in SPLITS:
        found = documents(demo_world.out, f"eval/digits_{split}")
        counts = Counter(document.meta["answer"] for document in found)
        assert len(counts) == 10 and len(set(counts.values())) == 1
        for document in found:
            meta = document.meta
            assert int(document.key[-1]) == meta["candidates"].index(meta["answer"])
            assert len(set(meta["descriptions"])) == 10


def test_reviews_of_the_test_split_end_in_seven_and_their_copies_are_in_no_set(demo_world):
    for split in SPLITS:
        for document in documents(demo_world.out, f"eval/sentiment_{split}"):
            assert (document.key[-1] == "7") == (split == "test")
            assert (document.meta["score"] > 0) == (document.meta["answer"] == "positive")
            assert abs(document.meta["score"]) >= 0.5
            assert document.key != "review-00018"  # 17 in capitals
    test = documents(demo_world.out, "eval/sentiment_test")
    assert {d.meta["answer"] for d in test} == {"positive", "negative"}


def test_a_long_review_fits_on_its_picture():
    import io

    from PIL import Image

    long = Image.open(io.BytesIO(sentiment.draw("wonderful film " * 17)))
    dark = long.point(lambda shade: 255 if shade < 128 else 0)
    left, top, right, bottom = dark.getbbox()
    margin = sentiment.MARGIN
    assert margin <= left and right <= sentiment.PIXELS - margin + 1
    assert margin <= top and bottom <= sentiment.PIXELS - margin + 4
    assert bottom > 0.6 * sentiment.PIXELS


def test_answers_stand_once_on_their_page(demo_world):
    test = documents(demo_world.out, "eval/pages_test")
    for document in test:
        (answer,) = document.meta["answers"]
        lines = document.meta["page_text"].split("\n")
        assert sum(line.endswith(f": {answer}") for line in lines) == 1
        assert lines[0] in document.meta["question"]
    images = {d.meta["image"]: d.images[0] for d in test}
    assert all(images[d.meta["image"]] == d.images[0] for d in test)
    assert len(set(images.values())) == len(images) < len(test)


# ---- Raven --------------------------------------------------------------------------------------


def test_raven_test_puzzles_are_the_reserved_ones(demo_world):
    for split in SPLITS:
        for document in documents(demo_world.out, f"eval/raven_{split}"):
            configuration = document.meta["configuration"]
            is_reserved = (
                configuration == raven_puzzles.RESERVED or int(document.key.split("-")[-1]) >= 1500
            )
            assert is_reserved == (split == "test")
            assert len(document.images) == 16
            assert len(set(document.images[8:])) == 8
            assert 0 <= document.meta["answer"] < 8
    reserved = [
        d
        for d in documents(demo_world.out, "eval/raven_test")
        if d.meta["configuration"] == raven_puzzles.RESERVED
    ]
    assert len(reserved) > 20


def puzzles() -> list[raven_puzzles.Puzzle]:
    configuration = raven_puzzles.RESERVED
    return [
        read_puzzle(tiny_packages.puzzle(number, True), configuration, number)
        for number in range(40)
    ]


def test_a_vote_over_rebuilt_candidates_is_at_chance_and_over_leaking_ones_is_not():
    rebuilt = [(found.cells, found.answer) for p in puzzles() if (found := bisected(p))]
    assert len(rebuilt) == 40
    assert vote_accuracy(rebuilt) == pytest.approx(1 / 8)
    leaking = []
    for puzzle in puzzles():  # as RAVEN does: each distractor differs in one attribute
        cells = [puzzle.ninth]
        for component, name, new in itertools.product((0, 1), ("size", "colour", "type"), (0, 1)):
            changed = with_value(puzzle.ninth, Attribute(component, name), new)
            if changed not in cells and len(cells) < 8:
                cells.append(changed)
        leaking.append((cells, 0))
    assert vote_accuracy(leaking) > 0.95
    assert len({answer for _, answer in rebuilt}) == 8


def test_every_distractor_breaks_a_rule_that_the_answer_keeps():
    for puzzle in puzzles():
        found = bisected(puzzle)
        assert found.cells[found.answer] == puzzle.ninth
        for place, cell in enumerate(found.cells):
            broken = 0
            for attribute in found.attributes:
                values = [raven_puzzles.value(c, attribute) for c in (*puzzle.context, cell)]
                rows = tuple(tuple(values[i : i + 3]) for i in (0, 3, 6))
                broken += not follows_a_rule(attribute.name, rows, 4)
            assert (broken == 0) == (place == found.answer)


def test_an_attribute_without_a_rule_gets_no_other_value():
    puzzle = puzzles()[0]
    sizes = Attribute(0, "size")
    assert wrong_value(puzzle, sizes) is not None
    noisy = [with_value(cell, sizes, n * n % 5) for n, cell in enumerate(puzzle.context)]
    noisy = raven_puzzles.Puzzle(puzzle.configuration, 0, tuple(noisy), puzzle.ninth)
    assert wrong_value(noisy, sizes) is None


@pytest.mark.parametrize(
    ("attribute", "rows", "follows"),
    [
        ("size", ((0, 1, 2), (3, 4, 5), (1, 2, 3)), True),  # progression
        ("size", ((0, 1, 2), (3, 4, 5), (1, 2, 4)), False),
        ("size", ((0, 1, 2), (1, 1, 3), (2, 2, 5)), True),  # 1 + 2 = 3: sizes count from one
        ("colour", ((0, 1, 1), (2, 3, 5), (4, 4, 8)), True),  # colours count from nought
        ("colour", ((0, 1, 1), (2, 3, 5), (4, 4, 9)), False),
        ("type", ((0, 1, 2), (1, 2, 0), (2, 0, 1)), True),  # three in each row
        ("type", ((0, 1, 2), (1, 2, 0), (2, 0, 0)), False),
        ("slots", (({0}, {1}, {0, 1}), ({2}, {3}, {2, 3}), ({0}, {3}, {0, 3})), True),
        ("slots", (({0}, {1}, {2}), ({1}, {2}, {3}), ({3}, {0}, {1})), True),  # moves on by one
        ("slots", (({0}, {1, 2}, {3}), ({0, 3}, {1}, {2, 3}), ({0}, {1}, {2, 3})), False),
    ],
)
def test_rules(attribute, rows, follows):
    if attribute == "slots":
        rows = tuple(tuple(frozenset(cell) for cell in row) for row in rows)
    assert follows_a_rule(attribute, rows, 4) == follows


def test_a_cell_is_read_with_its_components_and_places():
    sentence = (
        "A. On an image, a second figure is displayed inside a first one. Outside: a giant red "
        "triangle rotated at -90 degrees. Inside: a large green circle rotated at 135 degrees in "
        "the bottom left, an orange square. "
    )
    outside, inside = read_cell(sentence, raven_puzzles.RESERVED)
    assert [(f.size, f.colour, f.type, f.angle) for f in outside] == [(5, 0, 0, -90)]
    assert [(f.size, f.colour, f.type, f.angle, f.slot) for f in inside] == [(3, 4, 4, 135, 2)]


# ---- questions ----------------------------------------------------------------------------------


def test_a_situation_and_a_twin_question_are_on_one_side_only(demo_world):
    test, *others = (documents(demo_world.out, f"eval/socialiqa_{split}") for split in SPLITS)
    situations = {d.meta["context"] for d in test}
    assert not situations & {d.meta["context"] for other in others for d in other}
    test, *others = (documents(demo_world.out, f"eval/quartz_{split}") for split in SPLITS)

    def untwisted(document) -> str:
        return re.sub(r"goes (up|down)", "", document.meta["question"])

    asked = {untwisted(d) for d in test}
    assert not asked & {untwisted(d) for other in others for d in other}
    # Without the search for twins they would have been: a hash cannot see them.
    kept = {d.key for other in (test, *others) for d in other}
    wheels = Wheels({p.name: demo_world.cache / p.file for p in demo_world.packages})
    every = questions.read(wheels, "quartz", questions.QUARTZ_PATH, questions.QUARTZ)
    assert len(kept) < sum(1 for _ in every) - 10


def test_questions_are_read_with_their_answers(demo_world):
    (document,) = (
        d
        for split in SPLITS
        for d in documents(demo_world.out, f"eval/socialiqa_{split}")
        if d.key == "socialiqa-0004"
    )
    names = tiny_packages.NAMES
    assert document.meta == {
        "source": "socialiqa",
        "context": f"{names[2]} met {names[93]}.",
        "question": "What will they do?",
        "candidates": [f"go {names[4]}", f"say {names[5]}", f"be {names[6]}"],
        "answer": 1,
    }

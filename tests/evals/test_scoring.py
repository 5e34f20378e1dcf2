import math
import random

import numpy as np
import pytest

from evals.api import CandidateScore
from evals.contractions import CONTRACTIONS
from evals.scoring import (
    best_candidate,
    binomial_se,
    bootstrap_se,
    exact_match,
    vqa_accuracy,
    vqa_normalise,
)
from evals.uncertainty import mean_se, ratio_se


def test_norms_choose_different_candidates():
    short = CandidateScore(" an owl", -6.0, 2, 6, 6)
    long = CandidateScore(" a brown bear", -8.0, 4, 12, 12)
    accented = CandidateScore(" île", -1.5, 1, 3, 4)
    assert best_candidate([short, long], "sum") == 0
    assert best_candidate([short, long], "token") == 1
    assert best_candidate([short, accented], "byte") == 1  # -1.0 against -0.375
    assert accented.ll / accented.num_chars != accented.ll / accented.num_bytes


def test_a_tie_goes_to_the_first_candidate():
    tied = [CandidateScore(text, -3.0, 1, 1, 1) for text in (" b", " a")]
    assert best_candidate(tied, "token") == 0


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), *((m, 1.0) for m in range(4, 11))],
)
def test_vqa_accuracy_leaves_one_human_out_by_index(matches: int, accuracy: float):
    humans = ["yes"] * matches + [f"other{i}" for i in range(10 - matches)]
    random.Random(0).shuffle(humans)
    assert vqa_accuracy("yes", humans) == pytest.approx(accuracy)


def test_the_authors_example_of_eight_yes_and_two_no():
    humans = ["yes"] * 8 + ["no"] * 2
    assert vqa_accuracy("yes", humans) == 1.0
    assert vqa_accuracy("no", humans) == pytest.approx(0.6)


# Outputs of the official code on these strings.
@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("100,978", "100978"),
        ("red, white", "red white"),
        ("left-hand side", "left hand side"),
        ("two-tone", "2 tone"),
        ("U.K.", "uk"),
        ("it's 5.5.", "it's 5.5"),
        ("2:50 pm", "2:50 pm"),
        ("girl's hat", "girl's hat"),
        ("none", "0"),
        ("The dog dont\tknow", "dog don't know"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_vqa_normalisation_is_the_official_one(text: str, normal: str):
    assert vqa_normalise(text) == normal


def test_normal_answers_stay_as_they_are():
    for text in ("red white", "don't know", "2 tone", "uk", "2:50 pm"):
        assert vqa_normalise(vqa_normalise(text)) == vqa_normalise(text)


def test_unanimous_humans_switch_the_official_normalisation_off():
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes.", ["yes"] * 10, mode="always") == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0


def test_the_contraction_table_is_whole():
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["dont"] == "don't" and CONTRACTIONS["youve"] == "you've"
    assert sum(key != key.lower() for key in CONTRACTIONS) == 4


def test_exact_match_forgives_case_articles_and_punctuation_only():
    assert exact_match("The circle.", "circle") == 1.0
    assert exact_match("circles", "circle") == 0.0


def test_standard_errors_agree_with_simulation():
    draws = np.random.default_rng(0)
    shares = draws.binomial(200, 0.3, size=4000) / 200
    assert binomial_se(0.3, 200) == pytest.approx(shares.std(), rel=0.05)
    values = draws.normal(size=300)
    assert bootstrap_se(values.tolist()) == pytest.approx(mean_se(values.tolist()), rel=0.1)
    ratios = []
    for _ in range(2000):
        tokens = draws.integers(10, 200, size=80)
        losses = tokens * 3.0 + draws.normal(size=80) * tokens
        ratios.append(losses.sum() / tokens.sum())
    assert ratio_se(losses.tolist(), tokens.tolist()) == pytest.approx(np.std(ratios), rel=0.3)


def test_one_answer_has_no_standard_error():
    assert all(math.isnan(se) for se in (binomial_se(1.0, 1), mean_se([1.0]), bootstrap_se([1.0])))

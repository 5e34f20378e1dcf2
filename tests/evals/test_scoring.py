import math
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.api import CandidateScore
from evals.contractions import CONTRACTIONS
from evals.layouts.vqa import VqaRecord
from evals.okvqa_stems import Stemmer
from evals.scoring import (
    accuracy_by_norm,
    best_candidate,
    binomial_se,
    bootstrap_se,
    exact_match,
    macro_f1,
    roc_auc,
    roc_auc_se,
    token_f1,
    vqa_accuracy,
    vqa_normalise,
)
from evals.uncertainty import mean_se, ratio_se
from mllm.errors import UserError


def test_norms_choose_different_candidates():
    short = CandidateScore(" an owl", -6.0, 2, 6, 6)
    long = CandidateScore(" a brown bear", -8.0, 4, 12, 12)
    accented = CandidateScore(" île", -1.5, 1, 3, 4)
    assert best_candidate([short, long], "sum") == 0
    assert best_candidate([short, long], "token") == 1
    assert best_candidate([short, accented], "byte") == 1  # -1.0 against -0.375
    assert accented.ll / accented.num_chars != accented.ll / accented.num_bytes


def test_uncond_corrects_for_what_is_likely_anyway():
    likely = CandidateScore(" the", -2.0, 1, 3, 3, ll_uncond=-1.0)
    fitting = CandidateScore(" owl", -5.0, 1, 3, 3, ll_uncond=-9.0)
    assert best_candidate([likely, fitting], "sum") == 0
    assert best_candidate([likely, fitting], "uncond") == 1
    assert accuracy_by_norm([[likely, fitting]], [1])["uncond"] == 1.0
    bare = CandidateScore(" owl", -5.0, 1, 3, 3)
    assert set(accuracy_by_norm([[likely, bare]], [1])) == {"sum", "token", "char", "byte"}
    with pytest.raises(ValueError, match="empty prompt"):
        best_candidate([bare], "uncond")


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


def test_answers_without_ids_lose_nothing_and_order_does_not_matter():
    """VizWiz's answers have no ids: leaving out equal dictionaries would take all ten away."""
    humans = ["dog"] * 10
    assert vqa_accuracy("dog", humans) == 1.0
    mixed = ["dog"] * 3 + ["cat"] * 7
    assert {vqa_accuracy("dog", random.Random(i).sample(mixed, 10)) for i in range(9)} == {0.9}


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [("the red car", "A red, red car", 0.8), ("", "the", 1.0), ("", "car", 0.0), ("b", "c", 0.0)],
)
def test_f1_counts_words_as_often_as_they_occur(answer: str, gold: str, f1: float):
    assert token_f1(answer, gold) == pytest.approx(f1)


SCORED = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(pairs=SCORED)
def test_auc_is_the_share_of_pairs_in_order_with_ties_as_halves(pairs):
    labels, scores = [label for label, _ in pairs], [score for _, score in pairs]
    high = [s for label, s in pairs if label]
    low = [s for label, s in pairs if not label]
    if not high or not low:
        assert roc_auc(labels, scores) is None
        return
    won = sum((h > l) + 0.5 * (h == l) for h in high for l in low)  # noqa: E741
    area = roc_auc(labels, scores)
    assert area == pytest.approx(won / (len(high) * len(low)))
    assert roc_auc(labels, [1 / (1 + math.exp(-s)) for s in scores]) == area  # softmax of two
    assert roc_auc(labels, [0] * len(labels)) == 0.5


def test_the_error_of_an_auc_agrees_with_simulation():
    draws = np.random.default_rng(0)

    def sample():
        labels = draws.random(200) < 0.4
        return labels.tolist(), (draws.normal(size=200) + labels).tolist()

    areas = [roc_auc(*sample()) for _ in range(1000)]
    assert roc_auc_se(*sample()) == pytest.approx(float(np.std(areas)), rel=0.2)  # type: ignore[arg-type]
    assert math.isnan(roc_auc_se([True, True], [1.0, 2.0]))


def test_clusters_of_one_are_independent_and_copies_are_no_news():
    values = np.random.default_rng(0).normal(size=50).tolist()
    alone = mean_se(values, range(50))
    assert alone == pytest.approx(mean_se(values))
    assert mean_se(values * 4, [*range(50)] * 4) == pytest.approx(alone)
    assert math.isnan(mean_se([1.0, 2.0], ["a", "a"]))


def test_macro_f1_weighs_rare_classes_as_common_ones():
    golds = ["a"] * 8 + ["b", "c"]
    # a: precision 0.8, recall 1; b and c never answered.
    assert macro_f1(golds, ["a"] * 10) == pytest.approx((2 * 8 / 18) / 3)
    assert macro_f1(golds, golds) == 1.0


def okvqa_record() -> VqaRecord:
    raw = ("riding", "races", "morning glory", "dogs")
    stems = ("ride", "race", "morn glory", "dog")
    return VqaRecord("1", "1", Path("a.jpg"), "q", stems, (), raw, "ride", "", "")


def test_stemming_without_its_data_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "inflection", None)
    with pytest.raises(UserError, match=r"inflection is missing.*pip install nltk inflection"):
        Stemmer([okvqa_record()])


def test_stems_come_from_the_annotations_first_then_from_the_rules(monkeypatch):
    """Stand-ins for the two packages: WordNet's data is in none."""
    nltk, inflection = ModuleType("nltk"), ModuleType("inflection")
    lemmatizer = SimpleNamespace(lemmatize=lambda word, pos: word.removesuffix("ing"))
    nltk.stem = SimpleNamespace(WordNetLemmatizer=lambda: lemmatizer)  # type: ignore[attr-defined]
    nltk.tokenize = SimpleNamespace(word_tokenize=str.split)  # type: ignore[attr-defined]
    nltk.pos_tag = lambda words: [(w, "NNS" if w.endswith("s") else "NN") for w in words]  # type: ignore[attr-defined]
    inflection.singularize = lambda word: word.removesuffix("s")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "inflection", inflection)
    stem = Stemmer([okvqa_record()])
    assert stem("morning glory ") == "morn glory"  # an answer of the file
    assert stem("riding races") == "ride race"  # its words
    assert stem("jumping cats") == "jump cat"  # the rules

import random

import pytest

from evals import captions
from evals.captions import bleu, cider_d, rouge_l, score_captions, tokenize_simple

# Ten pictures and what pycocoevalcap 1.2 with Java 17 says of them (PTB tokenizer, x 100).
REFERENCES = {
    "a": ["An image of a red apple.", "A ripe, red apple (a fruit)."],
    "b": ["An image of an owl."],
    "c": ["An image of a dog's house: don't enter!", "A dog house", "The dog's house; small."],
    "d": ["An image of a left-hand glove."],
    "e": ["An image of the U.K. flag, which is 5.5 m long."],
    "f": ["An image of grapes.", "Grapes on a plate."],
    "g": ["An image of a clock at 2:50 - or later..."],
    "h": ['An image of a "quoted" word.'],
    "i": ["It's a cat that can't sleep and cannot eat."],
    "j": ["An image of 100,978 ants & 3 bees."],
}
HYPOTHESES = {
    "a": "An image of a red apple, a fruit.",
    "b": "An image of an owl owl owl.",
    "c": "An image of a dog's house.",
    "d": "An image of a glove.",
    "e": "An image of the flag.",
    "f": "",
    "g": "An image of a clock at 2:50.",
    "h": "An image of a word.",
    "i": "It's a cat.",
    "j": "An image of 100,978 ants.",
}
OFFICIAL = {"cider": 356.78622932, "bleu_4": 56.17523798, "rouge_l": 71.66088424}


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "has_official_tokenizer", lambda: False)


def test_scores_equal_pycocoevalcap(no_java: None):
    scores = score_captions(REFERENCES, HYPOTHESES)
    assert scores.suffix == "_simple"
    assert scores.cider == pytest.approx(OFFICIAL["cider"], abs=1e-6)
    assert scores.bleu_4 == pytest.approx(OFFICIAL["bleu_4"], abs=1e-6)
    assert scores.rouge_l == pytest.approx(OFFICIAL["rouge_l"], abs=1e-6)


def test_one_image_has_a_cider_of_zero():
    assert cider_d([[["a", "red", "apple", "here"]]], [["a", "red", "apple", "here"]]) == [0.0]


def test_perfect_captions_of_distinct_images_score_ten():
    tokens = [[f"w{i}{j}" for j in range(5)] for i in range(20)]
    assert cider_d([[t] for t in tokens], tokens) == pytest.approx([10.0] * 20)


def test_permuting_images_changes_nothing_and_another_image_does(no_java: None):
    scores = score_captions(REFERENCES, HYPOTHESES)
    order = list(REFERENCES)
    random.Random(1).shuffle(order)
    permuted = score_captions(
        {i: REFERENCES[i] for i in order}, {i: HYPOTHESES[i] for i in reversed(order)}
    )
    assert permuted == scores
    more = score_captions(REFERENCES | {"z": ["Fog"]}, HYPOTHESES | {"z": "An image of fog"})
    assert more.cider_by_image["a"] != scores.cider_by_image["a"]


def test_every_unicode_line_break_keeps_captions_apart():
    breaks = ["\r", "\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
    lines = tokenize_simple([f"an owl{b}here" for b in breaks] + ["", "a last apple"])
    assert lines == [["an", "owl", "here"]] * len(breaks) + [[], ["a", "last", "apple"]]


def test_an_empty_caption_scores_zero_on_its_image(no_java: None):
    assert score_captions(REFERENCES, HYPOTHESES).cider_by_image["f"] == 0.0
    assert rouge_l([["grapes"]], []) == 0.0
    assert bleu([[["grapes"]]], [[]])[3] < 1e-6


def test_different_ids_are_an_error(no_java: None):
    with pytest.raises(ValueError, match="differ"):
        score_captions({"a": ["x"], "b": ["y"]}, {"a": "x"})

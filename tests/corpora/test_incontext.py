"""What the in-context corpus must hold to prove anything: nothing of the test is ever trained."""

import hashlib
import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corpora.document import TextSegment
from corpora.incontext import episodes, pictures
from corpora.incontext.build import SMALL, build_incontext, write_trials
from corpora.reader import Corpus
from mllm.errors import UserError
from mllm.stream.plan import open_plan
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import MIN_VOCAB_SIZE, train_tokenizer

LATENTS = 1
SAMPLE_TOKENS = 4  # three letters, </s>
LETTERS = 26


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("incontext") / "corpus"
    assert build_incontext(out, small=True)
    return out


@pytest.fixture(scope="module")
def tokenizer(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    out = tmp_path_factory.mktemp("tokenizer")
    vocab_size = MIN_VOCAB_SIZE - 27 + LETTERS + SMALL.train_classes
    train_tokenizer([corpus_dir / "namings"], out, vocab_size=vocab_size, sample_bytes=1_000_000)
    return Tokenizer(out)


def documents(folder: Path):
    corpus = Corpus(folder)
    return [corpus.document(i) for i in range(len(corpus))]


def pixels(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as picture:
        return hashlib.sha256(picture.tobytes()).hexdigest()


def test_a_naming_is_a_picture_of_a_training_class_and_its_name(
    corpus_dir: Path, tokenizer: Tokenizer
) -> None:
    """One name a class and one class a name, of one token, in either place; texts of one length."""
    found = list(episodes.namings(SMALL.train_classes))
    classes: dict[str, set[int]] = {}
    places = []
    for (picture, text), document in zip(found, documents(corpus_dir / "namings"), strict=True):
        assert document.segments[1] == TextSegment(text) and document.images == (picture.png,)
        (named,) = (character for character in text if not character.isascii())
        classes.setdefault(named, set()).add(picture.code)
        places.append(text.index(named))
        ids = tokenizer.encode(text)
        assert len(ids) == SAMPLE_TOKENS - 1 and not any(map(tokenizer.is_byte, ids))
    assert set.union(*classes.values()) == set(episodes.codes("train", SMALL.train_classes))
    assert all(len(codes) == 1 for codes in classes.values())
    assert len(classes) == SMALL.train_classes and places.count(0) == places.count(1)


def test_equal_settings_give_equal_bytes(corpus_dir: Path, tmp_path: Path) -> None:
    build_incontext(tmp_path / "again", small=True)
    files = sorted(p.relative_to(corpus_dir) for p in corpus_dir.rglob("*.tar"))
    assert len(files) >= 5
    for file in files:
        assert (corpus_dir / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_corpus_that_stands_is_left_alone_and_another_is_refused(corpus_dir: Path) -> None:
    assert not build_incontext(corpus_dir, small=True)
    with pytest.raises(UserError, match="give another --out"):
        build_incontext(corpus_dir)


def words_and_pictures(folders: list[Path]) -> set[str]:
    """Every label word and every picture, by its pixels, in some corpora."""
    found: set[str] = set()
    for document in (d for folder in folders for d in documents(folder)):
        found |= {pixels(data) for data in document.images}
        found |= {s.text for s in document.segments if isinstance(s, TextSegment)}
        found |= set(document.meta.get("labels", ()))
    return found


def test_no_word_or_picture_of_the_test_is_trained(corpus_dir: Path, tmp_path: Path) -> None:
    names = ("namings", "train", "train_text_only", "validation")
    trained = words_and_pictures([corpus_dir / name for name in names])
    tests = [corpus_dir / "eval" / name for name in ("incontext_test", "incontext_support")]
    assert [len(Corpus(folder)) for folder in tests] == [SMALL.trials, 8 * SMALL.trials]
    tested = words_and_pictures(tests)
    assert len(tested) > 9 * SMALL.trials * 0.5 and tested.isdisjoint(trained)
    # Trials of the training split would be seen.
    write_trials(tmp_path, episodes.trials("train", SMALL.trials, SMALL.train_classes))
    leaked = words_and_pictures([tmp_path / "incontext_test", tmp_path / "incontext_support"])
    assert leaked & trained


@settings(max_examples=20, deadline=None)
@given(
    num_episodes=st.integers(1, 20),
    num_trials=st.integers(1, 20),
    train_classes=st.integers(4, 300),
    test_classes=st.integers(4, 100),
)
def test_no_class_or_word_of_the_test_is_trained_at_any_size(
    num_episodes: int, num_trials: int, train_classes: int, test_classes: int
) -> None:
    trained = [
        shown
        for episode in episodes.training_episodes("train", num_episodes, train_classes)
        for shown in episode
    ]
    trials = list(episodes.trials("test", num_trials, test_classes))
    tested = [shown for trial in trials for shown in (*trial.shots, trial.query)]
    codes = {shown.code for shown in trained} | set(episodes.codes("train", train_classes))
    assert codes.isdisjoint(shown.code for shown in tested)
    assert {shown.label for shown in trained}.isdisjoint(shown.label for shown in tested)


def test_splits_share_no_class_and_no_word_at_full_size() -> None:
    for one, other in combinations(episodes.SPLITS, 2):
        assert set(episodes.words(one)).isdisjoint(episodes.words(other))
        assert set(episodes.codes(one, 400)).isdisjoint(episodes.codes(other, 400))
    patterns = {pictures.prototype(code).cells.tobytes() for code in episodes.codes("train", 400)}
    assert len(patterns) == 400


def test_a_class_looks_like_itself_and_no_two_pictures_are_equal() -> None:
    """Nearest neighbour by raw pixels: far above chance, so pictures tell their class."""
    codes = episodes.codes("test", 40)
    shown = np.array(
        [
            [np.asarray(Image.open(io.BytesIO(pictures.draw(c, i)))) for i in range(3)]
            for c in codes
        ],
        dtype=np.float32,
    ).reshape(len(codes), 3, -1)
    assert len({row.tobytes() for row in shown.reshape(-1, shown.shape[-1])}) == shown.shape[0] * 3
    distances = ((shown[:, None, 0] - shown[None, :, 1]) ** 2).mean(-1)
    assert (distances.argmin(1) == np.arange(len(codes))).mean() > 0.8  # chance is 1/40


def test_labels_are_dealt_anew_in_every_episode() -> None:
    bound: dict[int, set[str]] = {}
    for episode in episodes.training_episodes("train", 400, 20):
        here = {(shown.code, shown.label) for shown in episode}
        assert len({code for code, _ in here}) == len({label for _, label in here}) == len(here)
        assert len({(shown.code, shown.instance) for shown in episode}) == len(episode)
        for code, label in here:
            bound.setdefault(code, set()).add(label)
    assert min(len(labels) for labels in bound.values()) > 20  # of some 60 episodes each


def test_a_trial_shows_each_class_in_turn_and_asks_for_another_picture() -> None:
    asked = []
    for trial in episodes.trials("test", 200, 40):
        for first in (0, 4):
            assert {shown.label for shown in trial.shots[first : first + 4]} == set(trial.labels)
        same = [shown for shown in trial.shots if shown.code == trial.query.code]
        assert len(same) == 2 and all(shown.label == trial.query.label for shown in same)
        assert trial.query.instance not in {shown.instance for shown in same}
        asked.append(trial.labels.index(trial.query.label))
    assert max(np.bincount(asked)) < 75  # of 200 over 4 places


def test_a_joined_row_is_one_episode(corpus_dir: Path, tokenizer: Tokenizer) -> None:
    """Every label takes as many tokens, those never trained too, and rows hold 9 samples each."""
    for split in episodes.SPLITS:
        for word in episodes.words(split):
            ids = tokenizer.encode(word)
            assert len(ids) == SAMPLE_TOKENS - 1 and not any(map(tokenizer.is_byte, ids))
    corpus = Corpus(corpus_dir / "train")
    seq_len = 1 + episodes.EPISODE_SAMPLES * (LATENTS + 2 + SAMPLE_TOKENS)
    _, plan = open_plan(corpus, tokenizer, seq_len=seq_len, num_latents=LATENTS, join_share=1.0)
    assert plan.num_rows == SMALL.train_episodes and plan.num_padding == plan.num_cuts == 0
    for row in range(plan.num_rows):
        keys = [corpus.key(sample) for sample, _, _ in plan.pieces(row)]
        assert keys == [f"{keys[0][:-2]}-{place}" for place in range(episodes.EPISODE_SAMPLES)]

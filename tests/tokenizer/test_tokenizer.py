import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.errors import UserError
from tokenizer.specials import NUM_SPECIALS, SPECIALS
from tokenizer.tokenizer import Tokenizer
from tokenizer.train import sentences, train, train_tokenizer

SPECIAL_TEXT = st.sampled_from([*SPECIALS, "<slot", ">", "</", "<0x41>", "▁", "\0", "\n"])


@given(pieces=st.lists(st.one_of(SPECIAL_TEXT, st.text(max_size=8)), max_size=12))
@settings(deadline=None, max_examples=200)
def test_text_never_becomes_a_special_token(world, pieces):
    ids = world.tokenizer.encode("".join(pieces))
    assert all(NUM_SPECIALS <= i < world.tokenizer.vocab_size for i in ids)


@given(text=st.text())
@settings(deadline=None, max_examples=200)
def test_any_text_comes_back_from_its_ids(world, text):
    ids = world.tokenizer.encode(text)
    assert world.tokenizer.decode(ids) == text.replace("▁", " ")


def test_newlines_and_runs_of_spaces_are_kept(world):
    for text in ("  a  b\n\n c ", "\t x\r\n", " the", "the", ""):
        assert world.tokenizer.decode(world.tokenizer.encode(text)) == text


def test_specials_have_the_ids_of_the_table_and_vanish_in_decoding(world):
    tokenizer = world.tokenizer
    assert [tokenizer.id_to_piece(i) for i in range(NUM_SPECIALS)] == list(SPECIALS)
    ids = tokenizer.encode("a red square")
    assert tokenizer.decode([0, 4, 6, 6, 5, *ids[:2], 2, 1, *ids[2:]]) == "a red square"


def test_training_twice_gives_the_same_model(world, tmp_path):
    for name in ("one", "two"):
        train_tokenizer([world.text, world.pairs], tmp_path / name, 340, 5_000)
    one, two = Tokenizer(tmp_path / "one"), Tokenizer(tmp_path / "two" / "tokenizer.model")
    assert one.fingerprint == two.fingerprint != world.tokenizer.fingerprint
    assert one.vocab_size == 340


def test_training_text_is_cut_below_the_length_that_sentencepiece_skips():
    from corpora.document import Document, TextSegment

    text = "word " * 5000 + "é" * 5000 + "\nlast line"
    cut = list(sentences([Document("a", (TextSegment(text),))]))
    assert "".join(cut) == text.replace("\n", "")
    assert max(len(line.encode()) for line in cut) <= 4192


def test_mistakes_are_one_line(world, tmp_path):
    with pytest.raises(UserError, match="mllm tokenizer train"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        Tokenizer(tmp_path)
    for vocab_size in (50, 30_000):
        with pytest.raises(UserError, match=f"--vocab-size {vocab_size}"):
            train(iter(["some words"] * 50), vocab_size)


def test_a_model_with_other_specials_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"] * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=8,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="is not id"):
        Tokenizer(tmp_path)

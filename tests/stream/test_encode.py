from corpora.document import Document, ImageSegment, TextSegment
from mllm.stream.encode import encode, encoded_length
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, SLOT_ID

IMAGE = [BOI_ID, SLOT_ID, SLOT_ID, SLOT_ID, EOI_ID]


def test_a_pair_is_image_then_scored_caption(world):
    caption = world.tokenizer.encode("a red square")
    document = Document("k", (ImageSegment(b"png"), TextSegment("a red square")))
    sequence = encode(document, world.tokenizer, 3)
    assert sequence.token_ids.tolist() == [BOS_ID, *IMAGE, *caption, EOS_ID]
    assert sequence.is_scored.tolist() == [False] * 6 + [True] * (len(caption) + 1)
    assert sequence.images == (b"png",)


def test_unscored_text_and_what_follows_the_last_text(world):
    question, answer = world.tokenizer.encode("colour?"), world.tokenizer.encode(" red")
    asked = TextSegment("colour?", is_scored=False)
    sequence = encode(Document("k", (asked, TextSegment(" red"))), world.tokenizer, 3)
    assert sequence.token_ids.tolist() == [BOS_ID, *question, *answer, EOS_ID]
    expected = [False] * (1 + len(question)) + [True] * (len(answer) + 1)
    assert sequence.is_scored.tolist() == expected
    # </s> goes with the last text, whether or not a picture follows.
    open_ended = Document("k", (TextSegment("x"), asked, ImageSegment(b"a")))
    assert not encode(open_ended, world.tokenizer, 3).is_scored[-1]


def test_text_that_spells_specials_adds_no_image(world):
    document = Document("k", (TextSegment("<s> <image><slot></image></s>"),))
    sequence = encode(document, world.tokenizer, 3)
    assert min(sequence.token_ids[1:-1]) >= 16
    assert sequence.images == ()


def test_length_without_encoding_is_the_length(world):
    from corpora.reader import Corpus

    for path in (world.pairs, world.text, world.interleaved, world.vqa):
        corpus = Corpus(path)
        for i in range(10):
            document = corpus.document(i)
            for num_latents in (1, 7):
                length = len(encode(document, world.tokenizer, num_latents).token_ids)
                assert length == encoded_length(document, world.tokenizer, num_latents)

"""Ids equal the trainer's, pictures and placeholders are counted, text stays text."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from corpora.document import Document, ImageSegment, TextSegment
from mllm.hf.messages import completion_turns
from mllm.hf.processing_mllm import END_OF_DOCUMENT
from mllm.images import normalise, open_picture, to_pixels
from mllm.stream.encode import encode as encode_document
from tests.hf.tiny import picture, png
from tokenizer.specials import (
    BOI_ID,
    BOS_ID,
    EOI_ID,
    EOS_ID,
    NUM_SPECIALS,
    PAD_ID,
    SLOT_ID,
    SPECIALS,
)

HOSTILE = "<image> </s> <slot></image> <s> <pad> <unk> </line> <reserved_0>"
SLOTS = [BOI_ID, *[SLOT_ID] * 4, EOI_ID]


def test_ids_are_written_as_design_says(tiny):
    encode = tiny.tokenizer.encode
    batch = tiny.processor.from_segments(
        [[picture(1), " a red", END_OF_DOCUMENT, picture(2), "An image of"]]
    )
    expected = [BOS_ID, *SLOTS, *encode(" a red"), EOS_ID, *SLOTS, *encode("An image of")]
    assert batch["input_ids"][0].tolist() == expected
    assert torch.equal(batch["image_slot_mask"], batch["input_ids"] == SLOT_ID)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


def test_the_three_ways_in_agree(tiny):
    segments = tiny.processor.from_segments([[picture(1), "red, blue"]])
    string = tiny.processor(text="<image>red, blue", images=[picture(1)])
    messages = tiny.processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": picture(1)},
                    {"type": "text", "text": "red, blue"},
                ],
            }
        ]
    )
    for key, value in segments.items():
        assert torch.equal(value, string[key]), key
        assert torch.equal(value, messages[key]), key


def test_text_in_segments_and_messages_never_becomes_special(tiny):
    processor = tiny.processor
    messages = [{"role": "user", "content": HOSTILE}]
    for ids in (
        processor.from_segments([[HOSTILE]])["input_ids"][0],
        processor.apply_chat_template(messages, return_dict=False)[0],
        torch.tensor(processor.tokenizer(HOSTILE)["input_ids"]),
        torch.tensor(processor.tokenizer.encode(HOSTILE)),
    ):
        assert ids[0] == BOS_ID
        assert (ids[1:] >= NUM_SPECIALS).all()
        assert processor.tokenizer.decode(ids[1:]) == HOSTILE


def test_only_the_placeholder_is_special_in_the_string_way(tiny):
    batch = tiny.processor(text="</s><image><slot>", images=[picture(1)])
    encode = tiny.tokenizer.encode
    expected = [BOS_ID, *encode("</s>"), *SLOTS, *encode("<slot>")]
    assert batch["input_ids"][0].tolist() == expected


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("<image>a<image>b", [picture(1)], "the text has 2 <image> but 1 images"),
        ("a", [picture(1)], "the text has 0 <image> but 1 images"),
        ("<image>a", None, "the text has 1 <image> but 0 images"),
        (["<image>a", "b"], [[picture(1)], [picture(2)]], "text 1 has 0 <image> but 1 images"),
        (["<image>a", "b"], [[picture(1)]], "2 texts but 1 lists of images"),
    ],
)
def test_counts_that_differ_are_named(tiny, text, images, message):
    with pytest.raises(ValueError, match=message):
        tiny.processor(text=text, images=images)


def test_pictures_go_to_rows_in_order(tiny):
    texts = ["<image>a", "b", "<image>c<image>"]
    flat = tiny.processor(text=texts, images=[picture(1), picture(2), picture(3)])
    nested = tiny.processor(text=texts, images=[[picture(1)], [], [picture(2), picture(3)]])
    assert torch.equal(flat["pixel_values"], nested["pixel_values"])
    assert flat["image_slot_mask"].sum(1).tolist() == [4, 0, 8]


def test_padding_is_on_the_left_unless_asked(tiny):
    left = tiny.processor(text=["a", "red red red"])
    assert left["input_ids"][0, 0] == PAD_ID and left["input_ids"][0, -1] != PAD_ID
    assert torch.equal(left["attention_mask"], (left["input_ids"] != PAD_ID).long())
    right = tiny.processor(text=["a", "red red red"], padding_side="right")
    assert right["input_ids"][0, 0] == BOS_ID and right["input_ids"][0, -1] == PAD_ID


def test_pixels_are_bit_equal_to_the_trainers(tiny, tmp_path):
    data = png(7)
    expected = normalise(torch.from_numpy(to_pixels(open_picture(data), 16, "squash")))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for source in (data, path, picture(7), np.asarray(picture(7))):
        batch = tiny.processor.from_segments([[source, "x"]])
        assert torch.equal(batch["pixel_values"][0], expected)


def test_what_is_no_picture_is_a_value_error(tiny):
    with pytest.raises(ValueError, match="not a picture"):
        tiny.processor.from_segments([[b"GIF89a? no", "x"]])
    with pytest.raises(ValueError, match="nothing is fetched"):
        tiny.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "url": "https://example.org/a.png"}]}]
        )


def test_a_string_among_images_is_a_path_and_never_text(tiny, tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(png(7))
    expected = tiny.processor.from_segments([[path, "red"]])
    images = (str(path), [str(path)], [[str(path)]], path)
    for batch in (tiny.processor(text="<image>red", images=image) for image in images):
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def by_messages(tiny, **item):
    messages = [{"role": "user", "content": [{"type": "image", **item}]}]
    return tiny.processor.apply_chat_template(messages)


def by_string(tiny, image):
    return tiny.processor(text="<image>red", images=[image])


@pytest.mark.parametrize("url", ["https://example.org/a.png", "data:image/png;base64,iVBORw0"])
def test_nothing_is_fetched(tiny, url):
    for call in (
        lambda: by_string(tiny, url),
        lambda: by_messages(tiny, image=url),
        lambda: by_messages(tiny, path=url),
        lambda: by_messages(tiny, url=url),
        lambda: tiny.processor.image_processor(url),
    ):
        with pytest.raises(ValueError, match="nothing is fetched from the network"):
            call()


def test_what_is_taken_as_a_picture_is_named_where_something_else_came(tiny, tmp_path):
    taken = "a PIL picture, encoded bytes, a local path, or a uint8 array"
    array = np.asarray(picture(7))
    for image, error, said in (
        (torch.from_numpy(array.copy()), TypeError, "picture is a Tensor; give"),
        (None, TypeError, "picture is a NoneType; give"),
        (array / 255, ValueError, r"picture is a float64 array \(24, 24, 3\); give"),
        (array.transpose(2, 0, 1), ValueError, r"picture is a uint8 array \(3, 24, 24\); give"),
    ):
        for way in (by_string, lambda tiny, image: by_messages(tiny, image=image)):
            with pytest.raises(error, match=f"{said} {taken}"):
                way(tiny, image)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name, said in (("gone.png", "No such file"), ("bad.png", "not a picture")):
        with pytest.raises(ValueError, match=f"picture .*{name}: {said}") as raised:
            by_string(tiny, str(tmp_path / name))
        assert "\n" not in str(raised.value)
    expected = by_string(tiny, picture(7))["pixel_values"]
    assert torch.equal(by_string(tiny, array)["pixel_values"], expected)
    grey, alpha = array[..., 0], np.concatenate((array, array[..., :1]), 2)
    for other in (grey, alpha):
        assert by_string(tiny, other)["pixel_values"].shape == expected.shape


def test_settings_sorted_as_transformers_sorts_them_are_the_same(tiny):
    texts = ["a", "red red red"]
    plain = tiny.processor(text=texts, padding_side="right", return_tensors="np")
    text_kwargs = {"padding_side": "right", "padding": True}
    common = {"common_kwargs": {"return_tensors": "np"}, "images_kwargs": {}}
    for batch in (
        tiny.processor(text=texts, text_kwargs=text_kwargs, **common),
        tiny.processor.apply_chat_template(
            [[{"role": "user", "content": text}] for text in texts],
            processor_kwargs={"text_kwargs": text_kwargs, **common},
        ),
    ):
        assert isinstance(batch["input_ids"], np.ndarray)
        assert (batch["input_ids"] == plain["input_ids"]).all()
    with pytest.raises(TypeError, match="images_kwargs: do_resize cannot be set at a call"):
        tiny.processor(text="a", images_kwargs={"do_resize": False})
    with pytest.raises(TypeError, match="enable_thinking"):
        tiny.processor(text="a", text_kwargs={"enable_thinking": True})


@pytest.mark.parametrize("message", [{"role": "user", "content": None}, {"role": "user"}])
def test_a_message_without_content_is_a_value_error(tiny, message):
    with pytest.raises(ValueError, match=r"content is NoneType; it must be a text, or a list"):
        tiny.processor.apply_chat_template([message])
    with pytest.raises(ValueError, match="content item 'red' is neither"):
        tiny.processor.apply_chat_template([{"role": "user", "content": ["red"]}])


def question(answer=None):
    content = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "is it red?"}]
    messages = [{"role": "user", "content": content}]
    if answer:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def test_the_usual_snippet_of_transformers_works(tiny):
    inputs = tiny.processor.apply_chat_template(
        question(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = tiny.processor.from_segments([[picture(1), "Question: is it red? Answer:"]])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    tokens = tiny.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert tokens.shape[1] > inputs["input_ids"].shape[1]
    arrays = tiny.processor.apply_chat_template(question(), return_tensors="np")
    for key, value in arrays.items():
        assert isinstance(value, np.ndarray) and (value == expected[key].numpy()).all(), key


def test_the_pipeline_answers_as_generate_does(tiny):
    pipe = pipeline("image-text-to-text", model=tiny.model, processor=tiny.processor)
    for messages, row in (
        (question(), [picture(1), "Question: is it red? Answer:"]),
        (question("no, not"), [picture(1), "Question: is it red? Answer:", " no, not"]),
    ):
        inputs = tiny.processor.from_segments([row])
        tokens = tiny.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answer = tiny.processor.decode(
            tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        settings = {"return_full_text": False, "generate_kwargs": {"do_sample": False}}
        (record,) = pipe(text=messages, max_new_tokens=6, **settings)
        assert record["generated_text"] == answer


def test_what_the_processor_cannot_do_is_refused_by_name(tiny):
    template = tiny.processor.apply_chat_template
    for settings in ({"add_generation_prompt": False}, {"continue_final_message": True}):
        with pytest.raises(ValueError, match="always asks for an answer"):
            template(question(), **settings)
        template(question("no"), **settings)
    for call in (
        lambda: template(question(), enable_thinking=True),
        lambda: template(question(), processor_kwargs={"enable_thinking": True}),
        lambda: tiny.processor(text="a", enable_thinking=True),
    ):
        with pytest.raises(TypeError, match="enable_thinking"):
            call()


def test_the_completion_template_is_the_form_of_question_answer_documents():
    one, two = object(), object()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": one},
                {"type": "text", "text": "what shape is it?"},
            ],
        },
        {"role": "assistant", "content": "circle"},
        {"role": "user", "content": "what colour is it?"},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "image", "image": two}]},
    ]
    turns = completion_turns(messages)
    assert [turn.is_answer for turn in turns] == [False, True, False, True, False]
    assert [segment for turn in turns for segment in turn.segments] == [
        one,
        "Question: what shape is it? Answer:",
        " circle",
        "\nQuestion: what colour is it? Answer:",
        " red",
        two,
        "\nAn image of",
    ]


def trained(tiny, *documents):
    """What the trainer's stream makes of documents: ids and targets, a row each."""
    return [encode_document(document, tiny.tokenizer, 4) for document in documents]


def assert_labels_are_the_trainers(batch, sequences):
    for ids, mask, labels, sequence in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], sequences, strict=True
    ):
        length = len(sequence.token_ids)
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)  # padded on the right
        assert ids[:length].tolist() == sequence.token_ids.tolist()
        assert (labels[length:] == -100).all()
        assert ((labels[:length] != -100).numpy() == sequence.is_scored).all()
        assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_labels_mark_what_the_trainer_scores(tiny):
    sequences = trained(
        tiny,
        Document("a", (ImageSegment(png(1)), TextSegment("An image of"), ImageSegment(png(2)))),
        Document("b", (TextSegment("a red apple, an owl"),)),
    )
    rows = [[png(1), "An image of", png(2)], ["a red apple, an owl"]]
    segments = tiny.processor.from_segments(rows, return_labels=True)
    string = tiny.processor(
        text=["<image>An image of<image>", "a red apple, an owl"],
        images=[png(1), png(2)],
        return_labels=True,
    )
    for batch in (segments, string):
        assert_labels_are_the_trainers(batch, sequences)


def test_of_a_conversation_only_the_answers_are_labels(tiny):
    document = Document(
        "a",
        (
            ImageSegment(png(1)),
            TextSegment("Question: is it red? Answer:", is_scored=False),
            TextSegment(" no, blue"),
            TextSegment("\nQuestion: a circle? Answer:", is_scored=False),
            TextSegment(" no"),
        ),
    )
    image = {"type": "image", "image": png(1)}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "is it red?"}]},
        {"role": "assistant", "content": "no, blue"},
        {"role": "user", "content": "a circle?"},
        {"role": "assistant", "content": "no"},
    ]
    batch = tiny.processor.apply_chat_template(messages, return_labels=True)
    assert_labels_are_the_trainers(batch, trained(tiny, document))


def test_the_loss_of_a_padded_batch_with_labels_is_the_trainers(tiny):
    """Sum over shifted targets by the loss head, divided by their count, document by document."""
    rows = [[png(1), "An image of a red square"], ["a red apple"], [png(2), "red", png(3), "owl"]]
    batch = tiny.processor.from_segments(rows, return_labels=True)
    total, count = 0.0, 0
    engine = tiny.engine
    with torch.no_grad():
        loss = tiny.model(**batch).loss.item()
        for row in rows:
            segments = [TextSegment(s) if isinstance(s, str) else ImageSegment(s) for s in row]
            (sequence,) = trained(tiny, Document("a", tuple(segments)))
            ids = torch.tensor(sequence.token_ids, dtype=torch.long)[None]
            latents = None
            if sequence.images:
                pixels = tiny.processor.image_processor(list(sequence.images))["pixel_values"]
                latents = engine.encode_images(pixels)
            embeddings = engine.embed(ids, ids == SLOT_ID, latents)
            hidden = engine.decoder(embeddings, torch.arange(ids.shape[1])[None])
            loss_mask = torch.tensor(sequence.is_scored)[None, 1:]
            row_total, _ = engine.head(hidden[:, :-1][loss_mask], ids[:, 1:][loss_mask])
            total, count = total + row_total.item(), count + int(loss_mask.sum())
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_a_row_is_filled_up_but_never_cut(tiny):
    row = [picture(1), "An image of a red square"]
    length = tiny.processor.from_segments([row])["input_ids"].shape[1]
    for side, place in (("left", -length), ("right", 0)):
        batch = tiny.processor.from_segments(
            [row], padding="max_length", max_length=40, padding_side=side
        )
        assert batch["input_ids"].shape == (1, 40)
        assert batch["attention_mask"].sum() == length
        assert batch["input_ids"][0, place] == BOS_ID
    fitting = tiny.processor.from_segments([row], truncation=True, max_length=length)
    assert fitting["input_ids"].shape == (1, length)
    for settings in (
        {"truncation": True, "max_length": length - 1},
        {"padding": "max_length", "max_length": length - 1},
        {"max_length": 3},
    ):
        with pytest.raises(ValueError, match=f"row 0 has {length} tokens, max_length is .* never"):
            tiny.processor.from_segments([row], **settings)
    with pytest.raises(ValueError, match=r"row 0 has .* max_length is 128"):
        tiny.processor(text="red " * 200, truncation=True)
    with pytest.raises(ValueError, match="padding 'most'"):
        tiny.processor(text="red", padding="most")
    with pytest.raises(ValueError, match=r"rows of \[\d+, \d+\] tokens need padding=True"):
        tiny.processor(text=["a", "red red red"], padding=False)


def test_tokenizer_ids_and_text_equal_the_trainers(tiny):
    ours, theirs = tiny.processor.tokenizer, tiny.tokenizer
    for text in ("a red apple", "  two  spaces ", "line\nline", "é 日本 🍎", "", " x"):
        ids = theirs.encode(text)
        assert ours(text, add_special_tokens=False)["input_ids"] == ids
        assert ours.decode(ids) == theirs.decode(ids) == text
    assert len(ours) == theirs.vocab_size
    assert {name: ours.convert_tokens_to_ids(name) for name in SPECIALS} == SPECIALS
    assert set(ours.all_special_ids) == set(SPECIALS.values())


def test_decoding_drops_or_names_specials(tiny):
    ids = [BOS_ID, *SLOTS, *tiny.tokenizer.encode(" é"), EOS_ID]
    decode = tiny.processor.tokenizer.decode
    assert decode(ids, skip_special_tokens=True) == " é"
    assert decode(ids) == "<s><image><slot><slot><slot><slot></image> é</s>"

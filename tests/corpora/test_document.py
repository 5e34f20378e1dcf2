"""Every spelling of a sample reads as the same kind of document, and goes back as it came."""

import json

import pytest

from corpora.document import (
    Document,
    ImageSegment,
    TextSegment,
    Turn,
    from_members,
    image_extension,
    to_members,
)
from mllm.errors import BadSample

PNG = b"\x89PNG picture"
JPG = b"\xff\xd8 picture"


def read(**members: bytes | dict) -> Document:
    return from_members(
        "k",
        {
            name.replace("__", "."): json.dumps(value).encode()
            if isinstance(value, dict)
            else value
            for name, value in members.items()
        },
    )


@pytest.mark.parametrize(
    "segments",
    [
        (ImageSegment(PNG), TextSegment("a caption\nof two lines ")),
        (TextSegment("only text: ünïcode"),),
        (ImageSegment(JPG),),
        (TextSegment("a"), ImageSegment(PNG), TextSegment(" b "), ImageSegment(JPG)),
        (ImageSegment(PNG), TextSegment("Question:", is_scored=False), TextSegment(" yes")),
        (ImageSegment(PNG), TextSegment("unscored caption", is_scored=False)),
        (TextSegment("unscored", is_scored=False),),
        (ImageSegment(PNG),) * 12,
    ],
)
@pytest.mark.parametrize("meta", [{}, {"concept": "1F34E", "number": 3, "list": ["ü"]}])
def test_documents_go_to_members_and_back(segments, meta):
    document = Document("key", segments, meta)
    assert from_members("key", to_members(document)) == document


def test_an_img2dataset_sample_is_a_pair():
    document = read(jpg=JPG, txt=b"a dog", json={"url": "u", "caption": "a dog", "width": 3})
    assert document.segments == (ImageSegment(JPG), TextSegment("a dog"))
    assert document.meta == {"url": "u", "caption": "a dog", "width": 3}


def test_text_may_stand_in_json():
    assert read(json={"text": "hello", "url": "u"}) == Document(
        "k", (TextSegment("hello"),), {"url": "u"}
    )


def test_only_the_assistant_is_scored_in_turns():
    turns = [
        {"role": "user", "segments": [{"image": "0"}, {"text": "What?"}]},
        {"role": "assistant", "segments": [{"text": " A dog."}]},
    ]
    assert read(json={"turns": turns}, **{"0__jpg": JPG}).segments == (
        ImageSegment(JPG),
        TextSegment("What?", is_scored=False),
        TextSegment(" A dog."),
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"txt": b"\xff\xfe"}, "not UTF-8"),
        ({"json": b"{"}, "not JSON"),
        ({"json": b"[1]"}, "list, not an object"),
        ({"json": b"[" * 100_000}, "not JSON"),
        ({"cls": b"3"}, "neither picture nor text; its members are cls"),
        ({"json": {"segments": []}}, "no segments"),
        ({"json": {"segments": {"text": "a"}}}, "not a list"),
        ({"json": {"segments": [{"text": 3}]}}, "segment 0 has neither"),
        ({"json": {"segments": [{"image": "0"}]}}, "no member k.0.jpg"),
        ({"json": {"turns": [{"role": "user"}]}}, "turn 0 needs"),
        ({"json": {"turns": []}}, "not a list of turns"),
    ],
)
def test_content_that_spells_no_document_is_a_bad_sample(members, message):
    with pytest.raises(BadSample, match=message):
        read(**members)


def test_an_unknown_picture_format_is_refused_when_written():
    with pytest.raises(ValueError, match="not a known picture format"):
        image_extension(b"<svg></svg>")


def test_turns_keep_their_roles_and_go_to_members_and_back():
    document = Document(
        "k",
        (
            TextSegment("Be kind.", is_scored=False),
            ImageSegment(PNG),
            TextSegment("What?", is_scored=False),
            TextSegment(" A dog,"),
            TextSegment(" or a cat.", is_scored=False),
            ImageSegment(JPG),
        ),
        {"id": 3},
        (Turn("system", 1), Turn("user", 2), Turn("assistant", 3)),
    )
    members = to_members(document)
    assert json.loads(members["json"])["turns"][1] == {
        "role": "user",
        "segments": [{"image": "0"}, {"text": "What?"}],
    }
    assert from_members("k", members) == document


def test_turns_that_score_the_user_or_miss_segments_are_refused():
    said = (TextSegment("a"), TextSegment("b"))
    with pytest.raises(ValueError, match="scored text in a turn of 'user'"):
        to_members(Document("k", said, {}, (Turn("user", 1), Turn("assistant", 1))))
    with pytest.raises(ValueError, match="do not add up"):
        to_members(Document("k", said, {}, (Turn("assistant", 1),)))


def test_meta_with_half_a_surrogate_pair_goes_through_a_shard():
    document = Document("a", (TextSegment("text"),), {"title": "cut \ud83d"})
    assert from_members("a", to_members(document)) == document

"""Each filter keeps what it should and drops what it should, with the reason counted."""

import io
import json
import struct
import zlib
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from corpora.document import Document, ImageSegment, TextSegment, Turn
from corpora.pipeline.filters import FilterOptions, filter_steps
from corpora.pipeline.images import cut_after_image, remove_images
from corpora.pipeline.judge import read_drops
from corpora.pipeline.record import from_record, to_record
from corpora.pipeline.statistics import statistics_stages, statistics_steps
from corpora.pipeline.words import WORDS
from mllm.errors import UserError
from tests.corpora.pipeline.records import encoded, record, run_stage, scene

ENGLISH = (
    "The cat sat on the mat and looked at the dog that was with them. It would not move, because "
    "there was nothing to be had from it, and they knew what the other one had done before."
)
GERMAN = (
    "Die Katze lag auf dem Teppich und sah den Hund, der neben ihr stand. Sie wollte sich nicht "
    "bewegen, weil es dort nichts zu holen gab, und beide wussten, was vorher geschehen war."
)
RUSSIAN = "Кошка лежала на ковре и смотрела на собаку, которая стояла рядом с ней весь день."


def filtered(tmp_path, options, *records):
    """(ids kept, counts by reason over all steps)."""
    data = iter(records)
    steps = filter_steps(options, tmp_path)
    for step in steps:
        data = step.run(data, 0, 1)
    kept = [each.id for each in data]
    counts: Counter[str] = Counter()
    for step in steps:
        counts.update(read_drops(tmp_path / step.name / "000000.json")["dropped"])
    return kept, counts


def refused(*_):
    raise AssertionError("a filter asks the network")


def square(side: int, height: int = 0, seed: int = 1) -> bytes:
    return encoded(scene(seed).resize((side, height or side)))


def animation() -> bytes:
    frames = [scene(n, 70) for n in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    """A few bytes of PNG whose header speaks of 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


TEXT_CASES = [
    ({"min_chars": 5}, "12345", "1234", "under 5 characters"),
    ({"max_chars": 5}, "12345", "123456", "over 5 characters"),
    ({"min_words": 3}, "one two three", "one two", "under 3 words"),
    ({"max_words": 2}, "one two", "one two three", "over 2 words"),
    ({"drop_tags": True}, "a <b> and A<B by <person>", "by <PERSON> in red", "placeholder tag"),
    ({"min_script_share": 0.8}, "Crème brûlée, 12 €", RUSSIAN, "not in Latin letters"),
    (
        {"min_script_share": 0.8, "script": "Cyrillic"},
        RUSSIAN,
        ENGLISH,
        "not in Cyrillic letters",
    ),
    ({"min_stop_words": 0.15}, ENGLISH, GERMAN, "not English by its stop words"),
    ({"max_emoji": 0.25}, "so good 👍🏽 indeed", "wow 🎉 yes 👨‍👩‍👧", "too many emoji"),
    (
        {"max_hashtags": 0.25},
        "issue #12 and #2 of it all #mllm",
        "#so #much fun",
        "too many hashtags",
    ),
    (
        {"max_urls": 0.2},
        "see https://a.org for more of it",
        "http://a.b www.c.d e f",
        "too many URLs",
    ),
    ({"max_run": 5}, "so ---------- gooood 5.......6", "sooooooo", "a character repeated"),
    ({"max_repeated_lines": 0.3}, "a\n\n\nb\nc\na", "a\nb\na\na", "repeated lines"),
]


def by_reason(cases):
    """Ids without the bytes of pictures."""
    names = ("settings", "good", "bad", "reason")
    return pytest.mark.parametrize(names, cases, ids=[case[3] for case in cases])


@by_reason(TEXT_CASES)
def test_text_rules_keep_one_and_drop_the_other(tmp_path, settings, good, bad, reason):
    options = FilterOptions(**settings)
    kept, counts = filtered(tmp_path, options, record("good", good), record("bad", bad))
    assert (kept, counts) == (["good"], {reason: 1})


IMAGE_CASES = [
    ({"min_image_side": 64}, square(64, 90), square(90, 63), "side under 64 pixels"),
    ({"max_image_pixels": 6400}, square(80), square(80, 81), "over 6400 pixels"),
    ({"max_image_pixels": 10_000_000}, square(80), bomb(), "over 10000000 pixels"),
    ({"max_image_aspect": 3}, square(150, 50), square(50, 151), "proportions over 3"),
    ({"drop_animated": True}, square(70), animation(), "animated"),
    ({"drop_broken": True}, animation(), square(70)[:200], "broken or too large"),
    ({"drop_broken": True}, square(70), b"<svg xmlns='a'/>", "not a picture"),
    ({"drop_broken": True}, square(70), bomb(), "broken or too large"),
    (
        {"drop_single_colour": True},
        encoded(Image.new("L", (70, 70), 9).transform((70, 70), 0, (1, 0, 69, 0, 1, 0))),
        encoded(Image.new("RGB", (70, 70), "red")),
        "single colour",
    ),
]


@by_reason(IMAGE_CASES)
def test_image_rules_keep_one_and_drop_the_other(tmp_path, settings, good, bad, reason):
    pair = record("good", good, "a caption"), record("bad", bad, "a caption")
    kept, counts = filtered(tmp_path, FilterOptions(**settings), *pair)
    assert (kept, counts) == (["good"], {f"image: {reason}": 1})


@by_reason(IMAGE_CASES)
def test_a_bad_image_alone_goes_when_asked(tmp_path, settings, good, bad, reason):
    options = FilterOptions(**settings, on_bad_image="drop_image")
    mixed = record("mixed", "one", bad, "two", good, "three", source="a page")
    kept, counts = filtered(tmp_path, options, mixed, record("bad", "text", bad))
    assert (kept, counts) == (["mixed"], {"no good image left": 1})
    document = from_record(mixed)
    assert document.images == (good,)
    texts = [getattr(segment, "text", "image") for segment in document.segments]
    assert texts == ["one\ntwo", "image", "three"]  # their words do not touch
    assert document.meta == {"source": "a page"}
    (step,) = filter_steps(options, tmp_path)
    edited = read_drops(tmp_path / step.name / "000000.json")["edited"]
    assert edited == {f"image removed: {reason}": 2}


def test_a_document_is_cut_right_after_its_fifth_image(tmp_path):
    pictures = [square(70, seed=n) for n in range(7)]
    parts = [part for n, data in enumerate(pictures) for part in (f"text {n}", data)]
    long, short = record("long", *parts, "end"), record("short", *parts[:10], "its end")
    kept, counts = filtered(tmp_path, FilterOptions(max_images=5), long, short)
    assert (kept, counts) == (["long", "short"], {})
    assert from_record(long).images == tuple(pictures[:5])
    assert long.text == "text 0\ntext 1\ntext 2\ntext 3\ntext 4"
    assert from_record(short).segments[-1].text == "its end"


def test_half_of_the_documents_with_one_image_stay_whatever_their_order_and_number(tmp_path):
    options = FilterOptions(keep_single_image_share=0.5)
    picture = square(70)
    singles = [record(f"{n}", f"text {n}", picture) for n in range(400)]
    others = [record("none", "text"), record("two", picture, picture)]
    kept, counts = filtered(tmp_path, options, *singles, *others)
    assert kept[-2:] == ["none", "two"]
    assert 160 < len(kept) < 240 and counts == {"one image": 402 - len(kept)}
    # Another key, another unit, another order: the content decides.
    again = [record(f"9{n}", f"text {n}", picture) for n in reversed(range(400))]
    assert sorted(key[1:] for key in filtered(tmp_path, options, *again)[0]) == sorted(kept[:-2])
    other_seed = FilterOptions(keep_single_image_share=0.5, seed=1)
    assert filtered(tmp_path, other_seed, *singles)[0] != kept[:-2]


PARAGRAPH = (
    "In the spring of that year the two of them walked along the old canal with a map that nobody "
    "could read any more. They counted the bridges, wrote the numbers down and have kept the list."
)
FACTS = [
    "The first bridge was built from red brick before the railway came to this town.",
    "Farmers brought their apples over it to be sold in the market on the other side.",
    "A second one, made of iron, followed when ships grew too tall for the arches.",
    "Nobody knows to whom the small tower beside the lock once belonged, or why.",
    "Swans nest under its window, and children throw them bread from the path above.",
    "Every winter the water is let out and people find coins, bottles and bicycles.",
    "Their museum has a room for such things, with a card that tells where each lay.",
]


@pytest.mark.parametrize(
    ("switch", "bad", "reason"),
    [
        ("gopher_quality", "Too short a text for the rules of that filter.", "gopher_short_doc"),
        ("gopher_repetition", "\n".join([PARAGRAPH] * 6), "dup_line_frac"),
        ("fineweb_quality", "\n".join(FACTS).replace(".", ""), "line_punct_ratio"),
        ("c4", "\n".join([*FACTS, "It has a { in it to be sure."]), "curly_bracket"),
    ],
)
def test_datatroves_filters_run_without_downloads_and_count_their_reasons(
    tmp_path, monkeypatch, switch, bad, reason
):
    monkeypatch.setattr("socket.socket.connect", refused)
    good = "\n".join([PARAGRAPH, *FACTS])
    unscathed = record("good", good, square(70), a=1), record("picture", square(70))
    kept, counts = filtered(
        tmp_path, FilterOptions(**{switch: True}), *unscathed, record("bad", bad)
    )
    assert (kept, counts) == (["good", "picture"], {reason: 1})
    assert from_record(unscathed[0]).segments[0].text == good
    assert from_record(unscathed[0]).meta == {"a": 1}


def test_c4_rewrites_records_with_one_text_and_leaves_the_others(tmp_path):
    lines = [*FACTS, "No end to this line", "menu"]
    one = record("one", square(70), "\n".join(lines))
    two = record("two", lines[0], square(70), "menu")
    kept, _ = filtered(tmp_path, FilterOptions(c4=True), one, two)
    assert kept == ["one", "two"]
    assert from_record(one).segments[1].text == "\n".join(FACTS)
    assert from_record(two).segments[2].text == "menu"
    edited = read_drops(tmp_path / "c4" / "000000.json")["edited"]
    assert edited == {"rewritten": 1, "not judged: several text segments": 1}


def test_a_rewritten_text_survives_the_cut(tmp_path):
    cut = record("a", "old text", square(70, seed=1), square(70, seed=2), square(70, seed=3))
    cut.text = "new text"
    cut_after_image(cut, 2)
    assert from_record(cut).segments[0].text == "new text" and len(from_record(cut).images) == 2


def test_removed_images_leave_the_rest_in_order():
    pictures = [square(70, seed=n) for n in range(4)]
    each = record("a", pictures[0], "one", pictures[1], pictures[2], "two", pictures[3])
    remove_images(each, {0, 2})
    assert from_record(each).images == (pictures[1], pictures[3])
    assert [media.id for media in each.media] == ["0", "1"]


def test_the_texts_around_a_removed_image_are_two_lines_of_one_speaker():
    def text(words: str, scored: bool = False) -> TextSegment:
        return TextSegment(words, scored)

    first, second = (ImageSegment(square(70, seed=n)) for n in range(2))
    asked, answered = (text("one"), first, text("two")), (text("three", True), second)
    turns = (Turn("user", 3), Turn("assistant", 2), Turn("user", 1))
    each = to_record(Document("a", (*asked, *answered, text("four")), {}, turns))
    remove_images(each, {0, 1})
    left = from_record(each)
    assert left.segments == (text("one\ntwo"), text("three", True), text("four"))
    assert [turn.num_segments for turn in left.turns] == [1, 1, 1]


def language_model(path: str, words: dict[str, set[str]]) -> None:
    """A fastText model whose vectors are set: its training ends in NaN at random here."""
    import fasttext

    lines = [f"__label__{label} {' '.join(own)}" for label, own in words.items()]
    with open(f"{path}.txt", "w") as file:
        file.write("\n".join(lines * 5) + "\n")
    model = fasttext.train_supervised(f"{path}.txt", dim=2, epoch=0, thread=1, verbose=0)
    sides = [[w in own for own in words.values()] for w in model.get_words()]
    labels = [[label.endswith(name) for name in words] for label in model.get_labels()]
    model.set_matrices(np.array(sides, np.float32), 5 * np.array(labels, np.float32))
    model.save_model(path)


def test_a_fasttext_model_given_by_path_judges_the_language(tmp_path):
    words = {"en": {"the", "and", "dog"}, "de": {"der", "und", "Hund,"}}
    language_model(str(tmp_path / "model.bin"), words)
    options = FilterOptions(fasttext_model=str(tmp_path / "model.bin"))
    texts = record("en", ENGLISH, language="mine"), record("de", GERMAN)
    kept, counts = filtered(tmp_path / "drops", options, *texts)
    assert (kept, counts) == (["en"], {"language": 1})
    assert texts[0].metadata["language"] == "mine"


def test_the_papers_rules_for_interleaved_documents(tmp_path):
    options = FilterOptions.kosmos1("interleaved")
    wide, other = square(64), square(80, seed=2)
    flat, small = encoded(Image.new("RGB", (90, 90), "white")), square(63, seed=3)
    kept, counts = filtered(
        tmp_path,
        options,
        record("good", ENGLISH, wide, "and more of the same", other),
        record("small and flat", ENGLISH, wide, flat, small, other),
        record("only flat", ENGLISH, flat),
        record("only small", ENGLISH, small),
        record("german", GERMAN, wide, other),
        record("russian", RUSSIAN, wide, other),
        record("spam", "#win #free #now click http://a.b", wide, other),
    )
    assert kept == ["good", "small and flat"]
    assert counts == {
        "not English by its stop words": 1,
        "not in Latin letters": 1,
        "too many hashtags": 1,
        "no good image left": 2,  # one by its header, one by its pixels
    }


def test_the_papers_rules_for_pairs_and_text(tmp_path):
    pairs = FilterOptions.kosmos1("pairs")
    kept, _ = filtered(
        tmp_path,
        pairs,
        record("good", square(200), "a red boat"),
        record("small", square(199), "a red boat"),
        record("tag", square(200), "<PERSON> in a boat"),
    )
    assert kept == ["good"]
    text = FilterOptions.kosmos1("text")
    kept, _ = filtered(tmp_path, text, record("good", ENGLISH), record("german", GERMAN))
    assert kept == ["good"]
    with pytest.raises(UserError, match="no rules"):
        FilterOptions.kosmos1("video")  # type: ignore[arg-type]


def test_nothing_is_judged_unless_asked(tmp_path):
    assert filter_steps(FilterOptions(), tmp_path) == []


def test_every_option_has_a_sentence_for_the_commands_help():
    for field in fields(FilterOptions):
        assert field.metadata["help"] and not field.metadata["help"].endswith(".")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("keep_single_image_share", 1.5),
        ("min_script_share", -0.1),
        ("on_bad_image", "keep"),
        ("max_image_aspect", 0.5),
        ("fasttext_model", "/nowhere/lid.bin"),
        ("script", "Klingon"),
    ],
)
def test_impossible_options_are_refused_by_name(setting, value):
    with pytest.raises(UserError, match=setting):
        FilterOptions(**{setting: value})


def test_cheap_steps_come_before_those_that_decode(tmp_path):
    options = FilterOptions(
        min_chars=1, min_image_side=1, drop_broken=True, max_images=5, gopher_quality=True, c4=True
    )
    names = [step.name for step in filter_steps(options, tmp_path)]
    assert names == ["text", "image_header", "gopher_quality", "image_pixels", "layout", "c4"]


def test_words_and_sentences_by_rule():
    assert WORDS.word_tokenize("It's the dog’s, 日本 U.S.") == [
        "It's", "the", "dog’s", ",", "日", "本", "U", ".", "S", ".",
    ]  # fmt: skip
    sentences = ['He said "No." ', "Then he left!", "3.14 is pi\n", "end. "]
    text = sentences[0] + sentences[1] + " " + sentences[2] + sentences[3]
    assert WORDS.sent_tokenize(text) == [sentence.strip() for sentence in sentences]
    assert [text[a:b] for a, b in WORDS.span_tokenize(text)] == WORDS.sent_tokenize(text)


def test_statistics_add_up_over_units_and_leave_records_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", refused)
    units = [[record("a", "one two three"), record("b", "four\nfive")], [record("c", "x", k=1)]]
    for rank, unit in enumerate(units):
        data = iter(unit)
        for step in statistics_steps(tmp_path / "parts"):
            data = step.run(data, rank, 2)
        assert [each.id for each in data] == [each.id for each in unit]
    for stage in statistics_stages(tmp_path / "parts", tmp_path):
        run_stage(stage, 2)
    words = json.loads((tmp_path / "summary" / "n_words" / "metric.json").read_text())["summary"]
    assert (words["total"], words["n"]) == (6, 3)
    lines = json.loads((tmp_path / "summary" / "n_lines" / "metric.json").read_text())["summary"]
    assert lines["total"] == 4
    assert from_record(units[1][0]).meta == {"k": 1}


def test_a_picture_turned_on_its_side_by_exif_has_the_same_short_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(scene(1).resize((200, 70)))).save(buffer, "JPEG", exif=exif)
    turned = record("turned", buffer.getvalue())
    assert filtered(tmp_path, FilterOptions(min_image_side=70), turned)[0] == ["turned"]

"""Figures against a count by hand, for small corpora and for drawn samples of large ones."""

import json

import numpy as np
import pytest
from PIL import Image

from corpora import stats as module
from corpora.command import main
from corpora.document import Document, ImageSegment, TextSegment
from corpora.index import build_index
from corpora.shards import ShardWriter
from corpora.stats import stats
from tokenizer.tokenizer import Tokenizer

from .conftest import square
from .test_index import write_tar


def test_stats_count_what_is_there(tmp_path):
    picture = ImageSegment(square("red", 8))
    wide = ImageSegment(square("blue", 20))
    with ShardWriter(tmp_path / "c") as writer:
        writer.write(Document("a", (TextSegment("one two three"),), {"source": "x"}))
        writer.write(Document("b", (picture, TextSegment("fünf")), {"source": "x"}))
        writer.write(Document("c", (picture, TextSegment("a"), wide), {"source": "y"}))
        writer.write(Document("d", (wide,)))
    figures = stats(tmp_path / "c").figures
    assert figures["samples"] == figures["read_samples"] == 4
    assert figures["kinds"] == {
        "text": 1,
        "one picture and text": 1,
        "several pictures and text": 1,
        "pictures only": 1,
        "unusable": 0,
    }
    assert figures["sources"] == {"x": 2, "y": 1, "(not said)": 1}
    assert figures["text_bytes"]["sum"] == 13 + 5 + 1
    assert figures["words"]["sum"] == 5
    assert figures["images"]["sum"] == 4
    assert figures["images"]["per_sample"] == {"0": 1, "1": 2, "2": 1}
    assert figures["images"]["width"]["p0"] == 8
    assert figures["images"]["width"]["p100"] == 20
    assert figures["images"]["aspect"]["p50"] == 1


def test_a_large_corpus_is_drawn_from_and_says_so(corpus_dir, documents, monkeypatch):
    whole = stats(corpus_dir, count_tokens=len).figures
    assert "sum" in whole["words"] and "sum" in whole["tokens"]
    monkeypatch.setattr(module, "MAX_READ", 10)
    monkeypatch.setattr(module, "MAX_TOKENISED", 5)
    monkeypatch.setattr(module, "SCAN", 4)
    drawn = stats(corpus_dir, count_tokens=len).figures
    assert drawn["kinds"] == whole["kinds"]
    assert drawn["images"] == whole["images"]
    assert drawn["read_samples"] == 10
    assert drawn["tokens"]["of_samples"] == 5
    assert "sum" not in drawn["words"] and "sum" not in drawn["tokens"]
    # Every fifth document, of which one in three is text, one a pair, one interleaved.
    chosen = [documents[number * 25 // 10] for number in range(0, 10, 2)]
    lengths = [
        sum(len(s.text) for s in document.segments if isinstance(s, TextSegment))
        for document in chosen
    ]
    assert drawn["tokens"]["estimated_sum"] == round(np.mean(lengths) * 25)


def test_bad_samples_are_counted_not_fatal(tmp_path):
    members = [
        ("bad.json", b"{"),
        ("cut.png", square("red")[:20]),
        ("odd.json", b'{"text": "x", "source": "\\ud83d"}'),
    ]
    write_tar(tmp_path / "a.tar", members)
    build_index(tmp_path)
    figures = stats(tmp_path).figures
    assert figures["kinds"]["unusable"] == 1
    assert figures["images"]["width"] == {}
    json.dumps(figures, ensure_ascii=False).encode()


def test_tokens_and_plots_come_from_the_command_line(world, corpus_dir, tmp_path, capsys):
    flags = ["--tokenizer", str(world.tokenizer_dir), "--plots", str(tmp_path / "plots"), "--json"]
    assert main(["stats", str(corpus_dir), *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer(world.tokenizer_dir)
    from corpora.reader import Corpus

    corpus = Corpus(corpus_dir)
    assert figures["tokens"]["sum"] == sum(
        len(tokenizer.encode(segment.text))
        for i in range(len(corpus))
        for segment in corpus.document(i).segments
        if isinstance(segment, TextSegment)
    )
    with Image.open(tmp_path / "plots" / "stats.png") as image:
        assert image.width > 800


@pytest.mark.parametrize("members", [[("a.txt", b"x")], [("a.png", square("red"))]])
def test_a_corpus_of_one_kind_can_be_drawn(tmp_path, members, capsys):
    write_tar(tmp_path / "a.tar", members)
    build_index(tmp_path)
    assert main(["stats", str(tmp_path), "--plots", str(tmp_path)]) == 0
    assert "stats.png" in capsys.readouterr().out

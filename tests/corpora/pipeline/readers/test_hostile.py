"""Input that is damaged or means harm: it costs its own record, and is counted."""

import base64
import bz2
import gzip
import json
import os
import random
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from corpora.document import from_members, to_members
from corpora.pipeline.record import from_record, to_record
from mllm.errors import UserError

from .reading import coded, content, image, read

RED, BLUE = image("red"), image("blue")


def mmc4(path, *names):
    infos = [{"image_name": name, "matched_text_index": 0} for name in names]
    path.write_text(json.dumps({"text_list": ["a"], "image_info": infos}) + "\n")


def test_names_that_no_file_can_have_are_missing_pictures(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    mmc4(tmp_path / "a.jsonl", "a\0b.png", "\ud800.png", "red.png")
    (document,), log = read("interleaved", tmp_path / "a.jsonl")
    assert content(document) == [RED, "a"]
    assert log.edited == {"picture missing": 2}
    json.dumps(log.to_dict(), ensure_ascii=False).encode()  # what the report needs


def test_a_damaged_member_of_a_zip_is_one_picture_less(tmp_path):
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("red.png", RED)
        archive.writestr("blue.png", BLUE * 50)
    data = bytearray((tmp_path / "p.zip").read_bytes())
    start = data.find(b"blue.png") + len("blue.png")
    data[start : start + 10] = b"\xff" * 10
    (tmp_path / "p.zip").write_bytes(data)
    mmc4(tmp_path / "a.jsonl", "blue.png", "red.png")
    place = str(tmp_path / "p.zip")
    (document,), log = read("interleaved", tmp_path / "a.jsonl", image_dir=place)
    assert content(document) == [RED, "a"]
    assert log.edited == {"picture cannot be unpacked": 1}


def test_base64_in_lines_is_a_picture(tmp_path):
    wrapped = base64.encodebytes(image("red", "BMP")).decode()
    assert wrapped.count("\n") > 2
    row = {"text_list": ["a"], "image_info": [{"image_base64": wrapped, "matched_text_index": 0}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (document,), _ = read("interleaved", tmp_path / "a.jsonl")
    assert content(document)[0] == image("red", "BMP")


@pytest.mark.parametrize(
    ("source", "what"),
    [("a%00.png", "picture missing"), ("http://[x/y.png", "picture's src is no address")],
)
def test_a_src_that_is_no_address_leaves_the_page(tmp_path, source, what):
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "a.html").write_text(f'<p>one<img src="{source}"><img src="/red.png">two')
    (document,), log = read("interleaved", tmp_path)
    assert content(document) == ["one", RED, "two"]
    assert log.edited == {what: 1}


def test_text_behind_comments_and_instructions_stays(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "a.html").write_text("<p>one <?php x ?>two <!-- c -->three<img src=red.png>")
    (document,), _ = read("interleaved", tmp_path)
    assert content(document) == ["one two three", RED]


@pytest.mark.parametrize("depth", [300, 1500, 5000])
def test_a_deep_page_is_whole_or_dropped(tmp_path, depth):
    (tmp_path / "red.png").write_bytes(RED)
    deep = "<div>" * depth + "deep" + "</div>" * depth
    (tmp_path / "a.html").write_text(f"<img src=red.png>before{deep}<p>after")
    documents, log = read("interleaved", tmp_path)
    if depth < 2000:
        assert [content(d) for d in documents] == [[RED, "before\ndeep\nafter"]]
    else:
        assert not documents
        assert log.dropped == {"page cannot be parsed": 1}


def test_a_tsv_that_is_none_does_not_stop_the_others(tmp_path):
    (tmp_path / "a.tsv").write_text(f"red\t{coded(RED)}\n")
    (tmp_path / "b.tsv").write_text("")
    (tmp_path / "c.tsv").write_text("no such table\n")
    (tmp_path / "d.tsv").write_text(f"blue\t{coded(BLUE)}\n")
    documents, log = read("pairs", tmp_path)
    assert [content(d) for d in documents] == [[RED, "red"], [BLUE, "blue"]]
    assert log.broken_files == [str(tmp_path / "c.tsv")]


def test_columns_named_like_our_own_do_not_change_a_document(tmp_path):
    names = ["segments", "turns", "text", "caption", "image"]
    (tmp_path / "a.tsv").write_text("\t".join(names) + f"\ns\tt\tx\tred\t{coded(RED)}\n")
    (document,), _ = read("pairs", tmp_path / "a.tsv")
    assert from_members("k", to_members(document)).segments == document.segments
    row = {"text": "hello", "mllm_roles": ["a"], "mllm_layout": "b", "segments": 1, "turns": 2}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (document,), _ = read("text", tmp_path / "a.jsonl")
    back = from_record(to_record(document))
    assert from_members("k", to_members(back)).segments == document.segments


def test_a_quote_that_nothing_closes_is_named(tmp_path):
    lines = [f"line {i},{i}\n" for i in range(20)]
    lines[12] = '"' + lines[12]
    lines[3] = '"quoted" and not,3\n'
    (tmp_path / "a.csv").write_text("text,id\n" + "".join(lines))
    documents, log = read("text", tmp_path / "a.csv")
    assert [d.meta["id"] for d in documents] == [str(i) for i in range(12) if i != 3]
    assert log.dropped == {"not CSV": 1, "file breaks off": 1}
    assert log.broken_files == [str(tmp_path / "a.csv")]


def test_one_bad_string_or_date_in_parquet_costs_its_row(tmp_path):
    raw = pa.array([b"one", b"\xff\xfe", b"three", b"four"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    dates = pa.array([0, 0, 0, 10**14], pa.timestamp("s"))
    pq.write_table(pa.table({"text": texts, "date": dates}), tmp_path / "a.parquet")
    documents, log = read("text", tmp_path / "a.parquet")
    assert [content(d) for d in documents] == [["one"], ["three"]]
    assert log.dropped == {"a column has no value in Python": 2}


def test_damaged_bz2_gives_its_beginning(tmp_path):
    rng = random.Random(0)
    rows = [json.dumps({"text": f"{i} {rng.random()}"}) + "\n" for i in range(60_000)]
    data = bytearray(bz2.compress("".join(rows).encode(), 1))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\0" * 20
    (tmp_path / "a.jsonl.bz2").write_bytes(data)
    documents, log = read("text", tmp_path / "a.jsonl.bz2")
    assert 1000 < len(documents) < 59_000
    assert log.broken_files == [str(tmp_path / "a.jsonl.bz2")]


def test_a_file_that_unpacks_beyond_bounds_is_dropped_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.pipeline.readers.text.MAX_FILE", 4 << 20)
    monkeypatch.setattr("corpora.pipeline.readers.streams.MAX_LINE", 4 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"ab\n" * (64 << 20)))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(bytes(512 << 20)))
    tracemalloc.start()
    try:
        _, gz_log = read("text", tmp_path / "a.txt.gz")
        _, zst_log = read("text", tmp_path / "b.jsonl.zst", text_column="text", forced="rows")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert gz_log.dropped == {"file too large for a document": 1}
    assert zst_log.dropped == {"line too long": 1}
    assert peak < 450 << 20  # zstd: 4 KiB of input unpack to 128 MiB at most


def test_an_input_that_is_no_text_is_not_left_out_in_silence(tmp_path):
    rows = [{"instruction": "Add.", "input": given, "output": "3"} for given in (5, ["x"], None)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    documents, log = read("instruct", tmp_path / "a.json")
    assert [content(d) for d in documents] == [["Add.", " 3"]]
    assert log.dropped == {"input is a int, not text": 1, "input is a list, not text": 1}


def test_a_split_that_no_image_has_is_named(tmp_path):
    (tmp_path / "r.png").write_bytes(RED)
    entry = {"filename": "r.png", "split": "train", "sentences": [{"raw": "red"}]}
    (tmp_path / "k.json").write_text(json.dumps({"images": [entry]}))
    with pytest.raises(UserError, match=r"no image of --split trian; its splits are train"):
        read("pairs", tmp_path / "k.json", split="trian")
    assert len(read("pairs", tmp_path / "k.json", split="train,restval")[0]) == 1


def test_pipes_are_passed_over_and_links_to_nothing_named(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    os.mkfifo(tmp_path / "b.txt")
    assert [content(d) for d in read("text", tmp_path)[0]] == [["one"]]
    (tmp_path / "c.txt").symlink_to("/nowhere/x")
    with pytest.raises(UserError, match=r"c\.txt: a link to nothing"):
        read("text", tmp_path)

"""Text of foreign writers comes out as it went in, in order; what is broken is counted."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mllm.errors import UserError

from .reading import content, read

WORDS = [f"document {i}: größer\u2028als\ttab" for i in range(40)]


def json_lines(texts: list[str]) -> bytes:
    return "".join(
        json.dumps({"id": str(i), "text": t, "meta": {"pile_set_name": "X"}}) + "\n"
        for i, t in enumerate(texts)
    ).encode()


def zstd_frames(data: bytes) -> bytes:
    """Two frames in a row, as `zstd` appends and pzstd writes."""
    half = data.index(b"\n", len(data) // 2) + 1
    compressor = zstandard.ZstdCompressor()
    return compressor.compress(data[:half]) + compressor.compress(data[half:])


COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd_frames,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["data.jsonl", "part-0.json"])
def test_json_lines_of_the_pile_and_dolma(tmp_path, name, ending):
    path = tmp_path / "sub" / (name + ending)
    path.parent.mkdir()
    path.write_bytes(COMPRESS[ending](json_lines(WORDS)))
    documents, log = read("text", tmp_path)
    assert [content(d) for d in documents] == [[text] for text in WORDS]
    assert documents[3].meta == {"id": "3", "meta": {"pile_set_name": "X"}}
    assert not log.dropped


@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=12),
    unit_bytes=st.integers(1, 200),
    ends_in_newline=st.booleans(),
)
def test_any_cut_into_byte_ranges_reads_every_line_once(
    tmp_path_factory, texts, unit_bytes, ends_in_newline
):
    texts = [t.encode(errors="ignore").decode() or "x" for t in texts]
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    data = json_lines(texts)
    path.write_bytes(data if ends_in_newline else data[:-1])
    documents, _ = read("text", path, unit_bytes)
    assert [d.segments[0].text for d in documents] == [t for t in texts if t.strip()]


def test_ranges_that_begin_where_a_line_begins_read_it_once(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [f"t{i}" for i in range(6)]
    path.write_text("".join(f'{{"text":"{text}"}}\n' for text in texts))  # 14 bytes each
    for unit_bytes in range(1, 90):
        documents, _ = read("text", path, unit_bytes)
        assert [d.segments[0].text for d in documents] == texts


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_a_cut_file_gives_its_beginning_and_its_name(tmp_path, ending):
    many = [f"{text} {i * 7919 % 1000}" for i in range(400) for text in WORDS]
    whole = COMPRESS[ending](json_lines(many))
    (tmp_path / f"a.jsonl{ending}").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "b.jsonl").write_bytes(json_lines(["whole"]))
    documents, log = read("text", tmp_path)
    texts = [d.segments[0].text for d in documents]
    assert texts.pop() == "whole"
    assert texts == many[: len(texts)]
    assert log.broken_files == [str(tmp_path / f"a.jsonl{ending}")]
    assert log.dropped["file breaks off"] == 1


def test_a_json_list_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.pipeline.readers.rows.BLOCK", 7)
    (tmp_path / "a.json").write_text(
        "\ufeff" + json.dumps([{"text": t} for t in [*WORDS, "[]},{"]], indent=2), "utf-8"
    )
    documents, log = read("text", tmp_path)
    assert [d.segments[0].text for d in documents] == [*WORDS, "[]},{"]
    (tmp_path / "a.json").write_text('[{"text": "a"}, 3, {"text": "b"}, {"te')
    documents, log = read("text", tmp_path)
    assert [d.segments[0].text for d in documents] == ["a", "b"]
    assert log.dropped == {"not a JSON object": 1, "file breaks off": 1}


def test_parquet_by_row_groups(tmp_path):
    pq.write_table(
        pa.table({"url": [f"u{i}" for i in range(40)], "text": WORDS, "n": [float("nan")] * 40}),
        tmp_path / "a.parquet",
        row_group_size=7,
    )
    for unit_bytes in (1, 3000, 1 << 30):
        documents, _ = read("text", tmp_path, unit_bytes)
        assert [d.segments[0].text for d in documents] == WORDS
        assert documents[5].meta == {"url": "u5", "n": None}


def test_a_cut_parquet_is_named_and_the_others_are_read(tmp_path):
    for name in "ab":
        pq.write_table(pa.table({"text": WORDS}), tmp_path / f"{name}.parquet")
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    documents, log = read("text", tmp_path)
    assert len(documents) == 40
    assert log.broken_files == [str(tmp_path / "b.parquet")]


def test_damaged_pages_of_parquet_are_a_break_not_a_crash(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": WORDS}), path, row_group_size=10, use_dictionary=False)
    start = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 60)
    documents, log = read("text", path)
    assert [d.segments[0].text for d in documents] == WORDS[: len(documents)]
    assert len(documents) <= 20
    assert log.broken_files == [str(path)]


def test_csv_of_pandas(tmp_path):
    texts = ['quoted "word"', "two\nlines", "comma, and ü"]
    pandas.DataFrame({"n": [1, 2, 3], "content": texts}).to_csv(tmp_path / "a.csv", index=False)
    documents, _ = read("text", tmp_path)
    assert [d.segments[0].text for d in documents] == texts
    assert documents[0].meta == {"n": "1"}


def test_files_in_order_of_their_paths(tmp_path):
    for name, data in {
        "b.txt": b"\xef\xbb\xbfbee\r\nline\r\n",
        "a/z.md": "# ü\n\ntext\n".encode(),
        "a/empty.txt": b" \n",
        "c.txt": b"\xff\xfe",
        ".hidden.txt": b"no",
        "d.txt.gz": gzip.compress(b"packed"),
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    documents, log = read("text", tmp_path)
    assert [(content(d)[0], d.meta["file"]) for d in documents] == [
        ("bee\nline", "b.txt"),
        ("packed", "d.txt.gz"),
        ("# ü\n\ntext", "a/z.md"),
    ]
    assert log.dropped == {"not UTF-8": 1, "no text": 1}
    documents, log = read("text", tmp_path, one_per="line")
    assert [d.segments[0].text for d in documents] == ["bee", "line", "packed", "# ü", "text"]


def test_bad_records_are_counted_with_reasons_and_examples(tmp_path):
    lines = [
        b'{"text": "good"}',
        b'{"text": ""}',
        b'{"text": null}',
        b'{"text": 3}',
        b'{"txt": "elsewhere"}',
        b"[1]",
        b'{"text": "cut',
        b'{"text": "nan is Python\'s", "score": NaN}',
        b"",
        b'{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, log = read("text", tmp_path)
    assert [d.segments[0].text for d in documents] == ["good", "nan is Python's", "last"]
    assert log.dropped == {
        "no text": 3,
        "text is a int, not text": 1,
        "not a JSON object": 1,
        "not JSON": 1,
    }
    assert log.examples["not JSON"] == [{"id": "a.jsonl line 7", "excerpt": '{"text": "cut'}]


def test_a_line_too_long_is_dropped_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.pipeline.readers.streams.MAX_LINE", 64)
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x"]) + b"y" * 300 + b"\n" + json_lines(["z"]))
    documents, log = read("text", tmp_path)
    assert [d.segments[0].text for d in documents] == ["x", "z"]
    assert log.dropped == {"line too long": 1}


def test_a_missing_column_names_those_found_and_the_flag(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "url": ["u"]}), tmp_path / "a.parquet")
    message = r"a.parquet: no column 'text' or .*; its columns are body, url; name one with --text-"
    with pytest.raises(UserError, match=message):
        read("text", tmp_path, forced="rows")
    with pytest.raises(UserError, match="with columns body, url; no known format of text"):
        read("text", tmp_path)
    assert len(read("text", tmp_path, text_column="body")[0]) == 1


def test_a_mixed_folder_wants_a_format(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_bytes(json_lines(["b"]))
    with pytest.raises(UserError, match="--format rows or txt"):
        read("text", tmp_path)
    assert len(read("text", tmp_path, forced="txt")[0]) == 1


@pytest.mark.parametrize("source", ["nowhere", "s3://bucket/x"])
def test_a_source_that_is_not_there(tmp_path, source):
    with pytest.raises(UserError, match=r"no such file|mounted folders"):
        read("text", Path(source))

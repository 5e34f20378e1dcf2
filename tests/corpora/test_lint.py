"""Every kind of finding from a fault planted in real tars, and nothing from a good corpus."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corpora import checks
from corpora.command import main
from corpora.duplicates import duplicates
from corpora.index import build_index
from corpora.lint import lint
from mllm.errors import UserError
from tokenizer.specials import SPECIALS

from .conftest import square
from .test_index import write_tar


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def report_of(folder: Path, members: list[tuple[str, bytes]]):
    write_tar(folder / "a.tar", members)
    build_index(folder)
    return lint(folder)


def test_faults_of_content_are_named(tmp_path, capsys):
    image = square("red")
    members = [
        ("good.png", image),
        ("good.txt", b"red"),
        ("cut.png", image[:40]),
        ("cut.txt", b"cut"),
        ("latin.txt", b"\xe9"),
        ("empty.txt", b""),
        ("twin.png", image),
        ("twin.txt", b"red"),
        ("good.txt", b"again"),
    ]
    report = report_of(tmp_path, members)
    assert report.errors == {"broken picture": 1, "no document": 1, "empty": 1}
    assert report.warnings == {"same content": 1, "duplicate key": 1}
    assert any("a.tar cut: broken picture: image 0" in example for example in report.examples)
    assert main(["lint", str(tmp_path)]) == 2
    assert "error: broken picture: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("members", "errors", "warnings"),
    [
        ([("a.png", picture(4, 90)), ("a.txt", b"x")], {}, {"absurd size": 1}),
        ([("a.png", picture(10, 210)), ("a.txt", b"x")], {}, {"absurd size": 1}),
        ([("a.png", picture(10, 200)), ("a.txt", b"x")], {}, {}),
        ([("a.png", picture(8100, 8000)), ("a.txt", b"x")], {"absurd size": 1}, {}),
        ([("a.txt", b"an <image> of </s>")], {}, {"special token in text": 1}),
        ([("a.txt", b"x\0y")], {}, {"NUL in text": 1}),
        ([("photo.v2.png", picture(9, 9))], {"no document": 1}, {"dotted key": 1}),
        ([("d.x/photo.png", picture(9, 9))], {}, {}),
        ([("a.json", b'{"text": "cut \\ud83d"}')], {"no document": 1}, {}),
        ([("a.json", b'{"text": "x", "size": NaN, "name": "\\ud83d"}')], {}, {}),
        ([("a.json", b"[" * 100_000)], {"no document": 1}, {}),
        ([("a.json", b'{"n": ' + b"1" * 5000 + b"}")], {"no document": 1}, {}),
        (
            [
                ("a.json", b'{"segments": [{"image": "0"}, {"text": "x"}]}'),
                ("a.0.png", picture(9, 9)),
            ],
            {},
            {},
        ),
    ],
)
def test_each_fault_has_its_kind(tmp_path, members, errors, warnings):
    report = report_of(tmp_path, members)
    assert (dict(report.errors), dict(report.warnings)) == (errors, warnings)


def test_a_huge_member_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MAX_MEMBER_BYTES", 100)
    assert report_of(tmp_path, [("a.txt", b"x" * 101)]).warnings == {"huge member": 1}


def test_a_missing_half_is_told_only_among_pairs(tmp_path):
    pairs = [
        member
        for number in range(30)
        for member in (
            (f"{number:02}.png", square((number, 0, 0))),
            (f"{number:02}.txt", b"%d" % number),
        )
    ]
    (tmp_path / "pairs").mkdir()
    report = report_of(tmp_path / "pairs", [*pairs[:-1], ("alone.txt", b"text")])
    assert report.warnings == {"missing pair": 2}
    assert {line.partition(": missing")[0] for line in report.examples} == {
        "a.tar 29",
        "a.tar alone",
    }
    (tmp_path / "mixed").mkdir()
    texts = [(f"text{number}.txt", b"text %d" % number) for number in range(9)]
    assert not report_of(tmp_path / "mixed", [*pairs, *texts]).warnings


def test_a_kind_with_many_findings_hides_no_other(tmp_path):
    many = [(f"{n:03d}.txt", b"<image> %d" % n) for n in range(100)]
    report = report_of(tmp_path, [*many, ("cut.json", b"{")])
    assert report.warnings == {"special token in text": 100}
    assert [example.split(": ")[1] for example in report.examples] == [
        *["special token in text"] * 5,
        "no document",
    ]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.name)])
def test_a_shard_that_is_no_file_is_a_finding(corpus_dir, make):
    make(corpus_dir / "a.tar")
    report = lint(corpus_dir)
    assert report.errors == {"unreadable shard": 1, "index is stale": 1}
    assert report.num_samples == 25


def test_a_shard_without_samples_is_told(tmp_path):
    write_tar(tmp_path / "b.tar", [("b.txt", b"text")])
    build_index(tmp_path)
    write_tar(tmp_path / "a.tar", [("readme", b"no sample")])
    build_index(tmp_path)
    report = lint(tmp_path)
    assert (report.errors, report.warnings) == ({}, {"empty shard": 1})


def test_more_dotted_names_than_an_index_takes_are_findings(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.index.MAX_EXTENSIONS", 3)
    write_tar(tmp_path / "a.tar", [(f"{n}.01.{n}.png", square((n, 0, 0))) for n in range(256)])
    with pytest.raises(UserError, match="256 member extensions"):
        build_index(tmp_path)
    assert lint(tmp_path).warnings["dotted key"] == 256


def test_keys_and_contents_repeat_across_shards(corpus_dir, documents):
    write_tar(
        corpus_dir / "zz.tar",
        [("sample-0001.txt", b"other"), ("new.txt", b"0"), ("newer.txt", b"0")],
    )
    build_index(corpus_dir)
    report = lint(corpus_dir)
    assert report.warnings == {"duplicate key": 1, "same content": 1}
    assert "zz.tar sample-0001: duplicate key: also in shard-000000.tar" in report.examples
    assert "zz.tar newer: same content: as new in zz.tar" in report.examples


@given(st.lists(st.integers(0, 12)), st.integers(1, 5), st.integers(1, 4))
def test_duplicates_are_those_of_a_dictionary(values, pass_size, scan):
    hashes = np.array(values, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    first: dict[int, int] = {}
    expected = {(first[v], i) for i, v in enumerate(values) if first.setdefault(v, i) != i}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corpora.duplicates.PASS", pass_size)
        patch.setattr("corpora.duplicates.SCAN", scan)
        found = list(duplicates(hashes))
    assert Counter(found) == Counter(expected)


def test_a_broken_shard_is_named_and_the_others_are_checked(corpus_dir, tmp_path):
    os.truncate(corpus_dir / "shard-000001.tar", 3000)
    (corpus_dir / "web.tar").write_bytes(b"<html>not found</html>" * 100)
    tarfile.open(corpus_dir / "zz.tar", "w:gz").close()
    data = bytearray((corpus_dir / "shard-000002.tar").read_bytes())
    pixels = data.index(b"IDAT") + 4
    data[pixels : pixels + 9] = b"?" * 9
    (corpus_dir / "shard-000002.tar").write_bytes(data)
    out = tmp_path / "findings.jsonl"
    result = subprocess.run(
        [sys.executable, "-m", "mllm.cli", "corpora", "lint", str(corpus_dir)]
        + ["--json", "--out", str(out), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    summary = json.loads(result.stdout)
    assert summary["errors"]["broken shard"] == 3
    assert summary["errors"]["broken picture"] == 1
    findings = [json.loads(line) for line in out.read_text().splitlines()]
    assert Counter(f["kind"] for f in findings if f["level"] == "error") == summary["errors"]
    broken = {f["shard"]: f["detail"] for f in findings if f["kind"] == "broken shard"}
    assert broken.keys() == {"shard-000001.tar", "web.tar", "zz.tar"}
    assert "compressed with gzip" in broken["zz.tar"]
    stale = {f["shard"] for f in findings if f["kind"] == "index is stale"}
    assert stale == {"shard-000002.tar", "web.tar", "zz.tar"}


def test_a_shard_that_cannot_be_read_is_named(corpus_dir):
    (corpus_dir / "shard-000000.tar").unlink()
    (corpus_dir / "shard-000000.tar").symlink_to("nowhere")
    report = lint(corpus_dir)
    assert report.errors == {"unreadable shard": 1}
    assert report.num_samples == 15


def test_content_changed_behind_the_index_is_seen(corpus_dir):
    shard = corpus_dir / "shard-000000.tar"
    data = shard.read_bytes()
    assert b"square 0" in data
    shard.write_bytes(data.replace(b"square 0", b"SQUARE 0"))
    assert lint(corpus_dir).errors == {"index is stale": 1}


def test_an_index_of_other_shards_is_stale(corpus_dir):
    (corpus_dir / "shard-000000.tar").rename(corpus_dir / "renamed.tar")
    report = lint(corpus_dir)
    assert report.errors == {"index is stale": 2}
    assert any("renamed.tar: index is stale: newer" in example for example in report.examples)


def test_no_index_is_a_warning(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    assert lint(tmp_path).warnings == {"no index": 1}


def test_a_good_corpus_passes(corpus_dir, capsys):
    assert main(["lint", str(corpus_dir)]) == 0
    assert "every sample can be used" in capsys.readouterr().out


def test_the_specials_are_the_tokenizers():
    assert set(checks.SPECIALS) == set(SPECIALS)

"""Indexing our shards and foreign ones, and refusing what is broken."""

import errno
import gc
import io
import json
import os
import tarfile
import tempfile
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.consolidate import consolidate
from corpora.index import build_index
from corpora.reader import Corpus
from corpora.sidecar import index_shard
from mllm.errors import BadSample, UserError

from .conftest import square


def write_tar(path, members, end=True):
    """A tar as other tools write it: times, owners, folders, any order."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("part")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000.5
            tar.addfile(info, io.BytesIO(data))


def test_the_index_is_small_numbers_about_each_sample(corpus_dir, documents):
    corpus = Corpus(corpus_dir)
    assert corpus.keys == [document.key for document in documents]
    assert corpus.text_bytes.tolist() == [document.text_bytes for document in documents]
    assert corpus.num_images.tolist() == [len(document.images) for document in documents]
    assert (corpus.image_sizes == 8).all()
    assert corpus.text_bytes.dtype == np.uint32
    assert corpus.num_images.dtype == np.uint16


def test_foreign_shards_are_read_after_indexing(tmp_path):
    members = [
        ("part/000.json", b'{"url": "u"}'),
        ("part/000.JPG", square("red")),
        ("part/000.txt", b"red"),
        ("001.txt", b"text"),
        ("part/" + "long" * 40 + "/002.txt", b"a long name"),
        ("003.seg.txt", b"?"),
        ("004.txt", b"\xff"),
    ]
    write_tar(tmp_path / "00000.tar", members)
    problems = build_index(tmp_path)
    corpus = Corpus(tmp_path)
    assert corpus.keys == ["part/000", "001", "part/" + "long" * 40 + "/002", "003", "004"]
    assert corpus.document(0).segments[1].text == "red"
    assert corpus.document(0).meta == {"url": "u"}
    assert corpus.document(2).segments[0].text == "a long name"
    assert len(problems) == 2
    assert "003: neither picture nor text" in problems[0]
    assert "004.txt: not UTF-8" in problems[1]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_a_truncated_shard_is_refused_by_name(corpus_dir, share):
    shard = corpus_dir / "shard-000001.tar"
    content = shard.read_bytes().rstrip(b"\0")  # its last kilobytes are padding
    shard.write_bytes(content[: int(len(content) * share)])
    before = (corpus_dir / "index" / "index.json").read_bytes()
    with pytest.raises(UserError, match=r"shard-000001.tar: not a whole tar shard.*index"):
        build_index(corpus_dir)
    assert (corpus_dir / "index" / "index.json").read_bytes() == before


def test_a_shard_cut_between_two_members_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.txt", b"x" * 100), ("1.txt", b"y" * 100)])
    # Folder header, then header and one block of data each.
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: 5 * 512])
    with pytest.raises(UserError, match="no end-of-archive block"):
        build_index(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100, b"\x1f\x8b\x08 gzip" * 90])
def test_a_file_that_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a.tar: not a whole tar shard"):
        build_index(tmp_path)


def test_an_unchanged_shard_is_not_read_again(corpus_dir, monkeypatch):
    monkeypatch.setattr("corpora.index.index_shard", lambda *names: pytest.fail(f"read {names}"))
    before = (corpus_dir / "index" / "index.json").read_bytes()
    build_index(corpus_dir)
    assert (corpus_dir / "index" / "index.json").read_bytes() == before


def test_the_index_may_lie_elsewhere(corpus_dir, documents, tmp_path):
    build_index(corpus_dir, tmp_path / "elsewhere")
    for file in (corpus_dir / "index").rglob("*"):
        if file.is_file():
            file.unlink()
    corpus = Corpus(corpus_dir, tmp_path / "elsewhere")
    assert corpus.document(3) == documents[3]
    assert corpus.index_dir == tmp_path / "elsewhere"


def test_an_interrupted_consolidation_leaves_the_old_index(corpus_dir, documents, monkeypatch):
    write_tar(corpus_dir / "zzz.tar", [("new.txt", b"new")])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("corpora.consolidate._BlockStarts.append", killed)
        build_index(corpus_dir)
    index = json.loads((corpus_dir / "index" / "index.json").read_bytes())
    assert index["num_samples"] == len(documents)
    assert (corpus_dir / "index" / index["arrays"] / "shard_starts.npy").exists()
    assert not list((corpus_dir / "index").glob("*.tmp-*"))
    build_index(corpus_dir)
    assert len(Corpus(corpus_dir)) == len(documents) + 1
    assert len(list((corpus_dir / "index").glob("arrays-*"))) == 1


def test_absurd_json_is_a_bad_sample_or_harmless(tmp_path):
    members = [
        ("lone.json", b'{"text": "cut \\ud83d"}'),
        ("part.json", b'{"segments": [{"text": "\\udc00"}]}'),
        ("raw.json", b'{"text": "\xed\xa0\xbd"}'),
        ("deep.json", b'{"a": ' * 100_000),
        ("huge.json", b'{"text": "x", "n": ' + b"9" * 5000 + b"}"),
        ("list.json", b"[1]"),
        ("name.json", b'{"segments": [{"image": "\\ud83d"}]}'),
        ("meta.json", b'{"text": "x", "url": "\\ud83d", "\\ud83d": NaN, "source": "\\ud83d"}'),
        ("null.txt", b"a\0b"),
    ]
    write_tar(tmp_path / "a.tar", members)
    problems = build_index(tmp_path)
    assert [problem.partition(".")[0].partition(":")[0] for problem in problems] == [
        *("lone", "part", "raw", "deep", "huge", "list", "name"),
    ]
    corpus = Corpus(tmp_path)
    assert corpus.num_bad_samples == 7
    for number in range(7):
        with pytest.raises(BadSample) as caught:
            corpus.document(number)
        str(caught.value).encode()  # it can be printed and written into the ledger
    assert corpus.document(8).segments[0].text == "a\0b"
    assert corpus.find(urls=["\ud83d"]).tolist() == [7]


def test_keys_that_are_not_utf8_can_be_printed_and_found(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("caf\udce9.txt", "two\nlines.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    build_index(tmp_path)
    corpus = Corpus(tmp_path)
    assert corpus.keys == ["caf\\xe9", "two\nlines"]
    assert corpus.find(keys=["caf\\xe9"]).tolist() == [0]


def test_problems_are_bounded_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.index.PROBLEMS", 30)
    for shard in "ab":
        write_tar(tmp_path / f"{shard}.tar", [(f"{n}.json", b"{") for n in range(50)])
    assert len(build_index(tmp_path)) == 30
    assert Corpus(tmp_path).num_bad_samples == 100


def test_a_member_of_four_gib_is_a_named_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.tar.MAX_MEMBER_BYTES", 99)
    write_tar(tmp_path / "a.tar", [("a.txt", b"text"), ("a.bin", b"x" * 100), ("b.txt", b"b")])
    assert build_index(tmp_path) == ["a.bin: 100 bytes; a member has less than 4 GiB"]
    assert Corpus(tmp_path).members(0) == {"txt": b"text"}


def test_sides_beyond_16_bits_are_clipped(tmp_path):
    header = square("red")[:16] + (70_000).to_bytes(4) + (3).to_bytes(4) + square("red")[24:]
    write_tar(tmp_path / "a.tar", [("a.png", header)])
    build_index(tmp_path)
    assert Corpus(tmp_path).image_sizes.tolist() == [[65535, 3]]


def test_several_workers_make_the_same_index(corpus_dir, documents, tmp_path):
    build_index(corpus_dir, tmp_path / "two", workers=2)
    one, two = corpus_dir / "index" / "index.json", tmp_path / "two" / "index.json"
    assert one.read_bytes() == two.read_bytes()


def test_a_broken_shard_costs_no_second_reading_of_the_others(corpus_dir, tmp_path, monkeypatch):
    good = (corpus_dir / "shard-000001.tar").read_bytes()
    os.truncate(corpus_dir / "shard-000001.tar", 3000)
    with pytest.raises(UserError, match=r"shard-000001.tar: not a whole tar shard"):
        build_index(corpus_dir, tmp_path / "i")
    (corpus_dir / "shard-000001.tar").write_bytes(good)
    read = []
    real = index_shard
    monkeypatch.setattr(
        "corpora.index.index_shard", lambda folder, name: read.append(name) or real(folder, name)
    )
    build_index(corpus_dir, tmp_path / "i")
    assert read == ["shard-000001.tar", "shard-000002.tar"]
    read.clear()
    sidecar = tmp_path / "i" / "shards" / "shard-000002.tar.npz"
    sidecar.write_bytes(sidecar.read_bytes()[:-50])  # as a full disk or a kill may leave it
    build_index(corpus_dir, tmp_path / "i")
    assert read == ["shard-000002.tar"]


def test_sidecars_of_shards_that_are_gone_go_too(corpus_dir):
    (corpus_dir / "shard-000002.tar").unlink()
    build_index(corpus_dir)
    assert sorted(path.name for path in (corpus_dir / "index" / "shards").iterdir()) == [
        "shard-000000.tar.npz",
        "shard-000001.tar.npz",
    ]
    assert len(Corpus(corpus_dir)) == 20


def test_what_a_killed_process_left_goes_after_a_day(corpus_dir):
    index_dir = corpus_dir / "index"
    old, young = index_dir / "shards" / "x.npz.tmp-1", index_dir / "shards" / "y.npz.tmp-2"
    folder = index_dir / "arrays.tmp-3"
    folder.mkdir()
    for path in (old, young, folder / "z.npy"):
        path.write_bytes(b"half")
    for path in (old, folder):
        os.utime(path, (1, 1))
    build_index(corpus_dir)
    assert not old.exists() and not folder.exists()
    assert young.exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 130)])
def test_indexing_again_mends_damaged_arrays(corpus_dir, documents, damage):
    damage(next((corpus_dir / "index").glob("arrays-*/key_hashes.npy")))
    with pytest.raises(UserError, match="run `mllm corpora index`"):
        Corpus(corpus_dir)
    build_index(corpus_dir)
    assert Corpus(corpus_dir).find(keys=[documents[7].key]).tolist() == [7]


def test_those_who_index_into_one_folder_take_turns(corpus_dir, tmp_path, monkeypatch):
    """Each would else remove the arrays of the other; the second finds what the first has read."""
    read, busy = [], []

    def alone(folder, name):
        assert not busy
        busy.append(name)
        time.sleep(0.02)
        read.append(busy.pop())
        return index_shard(folder, name)

    monkeypatch.setattr("corpora.index.index_shard", alone)
    with ThreadPoolExecutor(3) as pool:  # a lock of its own for each opening of the file
        done = [pool.submit(build_index, corpus_dir, tmp_path / "i") for _ in range(3)]
        assert [one.result(timeout=60) for one in done] == [[], [], []]
    assert sorted(read) == [f"shard-00000{number}.tar" for number in range(3)]
    assert len(Corpus(corpus_dir, tmp_path / "i")) == 25


def leads_nowhere(path):
    path.symlink_to("/nowhere/a.tar")


def leads_to_itself(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [leads_nowhere, leads_to_itself, Path.mkdir, os.mkfifo])
def test_a_shard_that_is_no_file_is_named(tmp_path, make):
    make(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"a.tar: (gone, or a link|not a file).* move it away"):
        build_index(tmp_path)


def test_a_disk_that_cannot_be_read_is_named(corpus_dir, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(UserError, match=r"000000.tar: cannot be read \(Input/output error\)"):
        build_index(corpus_dir, tmp_path / "i")


@pytest.mark.parametrize(
    ("number", "width"), [(255, 1), (256, 2), pytest.param(65_536, 4, marks=pytest.mark.slow)]
)
def test_any_number_of_extensions_keeps_its_members(tmp_path, monkeypatch, number, width):
    monkeypatch.setattr("corpora.index.MAX_EXTENSIONS", number)
    names = sorted(f"{n}.b" for n in range(number))
    write_tar(tmp_path / "a.tar", [(f"k.{name}", b"") for name in names])
    build_index(tmp_path)
    assert sorted(Corpus(tmp_path).members(0)) == names
    array = next((tmp_path / "index").glob("arrays-*/member_extensions.npy"))
    assert np.load(array).itemsize == width


def test_names_whose_dots_make_too_many_extensions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.index.MAX_EXTENSIONS", 3)
    write_tar(tmp_path / "a.tar", [(f"2024.01.{n}-photo.jpg", b"") for n in range(4)])
    with pytest.raises(UserError, match=r"4 member extensions, such as .01.3-photo.jpg; a key"):
        build_index(tmp_path)


def test_a_shard_beyond_two_tib_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("corpora.tar.MAX_OFFSET", 4096)
    write_tar(tmp_path / "a.tar", [(f"{n}.txt", b"x") for n in range(5)])
    with pytest.raises(UserError, match="longer than 2 TiB; split it"):
        build_index(tmp_path)


def test_a_folder_that_is_not_writable_is_named(corpus_dir, tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("corpora.index.write_sidecar", lambda sidecar, path: refuse(path))
    with pytest.raises(UserError, match=r"tar.npz: not writable; name another with --index-dir"):
        build_index(corpus_dir, tmp_path / "i")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 70), max_size=40), min_size=1, max_size=6),
    st.integers(1, 9),
)
def test_consolidated_arrays_are_those_of_all_samples(shards, block):
    """Any shards, any block size of the runs: what one list of all samples would give."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        for module in ("corpora.consolidate", "corpora.ragged"):
            patch.setattr(f"{module}.BLOCK", block)
        folder, expected = Path(name), []
        for number, sizes in enumerate(shards):
            members = []
            for place, size in enumerate(sizes):
                key = f"{number}-{place}" + "k" * (size % 4)
                images = [(f"{key}.{n}.png", square("red", 1 + n)) for n in range(size % 3)]
                segments = [{"image": str(n)} for n in range(size % 3)] + [{"text": "t" * size}]
                data = json.dumps({"segments": segments, "url": key}).encode()
                members += [(f"{key}.json", data), *images]
                expected.append((key, size, [[1 + n, 1 + n] for n in range(size % 3)]))
            write_tar(folder / f"{number}.tar", members)
        build_index(folder)
        corpus = Corpus(folder)
        assert corpus.keys == [key for key, _, _ in expected]
        assert corpus.text_bytes.tolist() == [size for _, size, _ in expected]
        assert [
            corpus.image_sizes[slice(*corpus.images.span(i))].tolist() for i in range(len(corpus))
        ] == [sides for _, _, sides in expected]
        for i, (key, size, sides) in enumerate(expected):
            assert corpus.document(i).text_bytes == size
            assert len(corpus.document(i).images) == len(sides)
            assert corpus.find(urls=[key]).tolist() == [i]


def test_consolidation_holds_one_sidecar_at_a_time(corpus_dir, tmp_path):
    alive: list[weakref.ref] = []

    def sidecars():
        for name in sorted(path.name for path in corpus_dir.glob("*.tar")):
            gc.collect()
            # The one just consumed may still be bound; those before it may not.
            assert sum(reference() is not None for reference in alive) <= 1
            sidecar = index_shard(corpus_dir, name)
            alive.append(weakref.ref(sidecar))
            yield sidecar

    summaries = [index_shard(corpus_dir, p.name).summary for p in sorted(corpus_dir.glob("*.tar"))]
    consolidate(sidecars(), summaries, tmp_path / "i")
    assert len(alive) == 3
    one, two = corpus_dir / "index" / "index.json", tmp_path / "i" / "index.json"
    assert one.read_bytes() == two.read_bytes()

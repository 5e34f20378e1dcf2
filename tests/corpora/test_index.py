"""Indexing our shards and foreign ones, and refusing what is broken."""

import io
import json
import tarfile

import numpy as np
import pytest

from corpora.index import build_index
from corpora.reader import Corpus
from mllm.errors import UserError

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

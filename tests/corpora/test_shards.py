"""What the writer leaves behind: whole shards, equal bytes, or nothing."""

import errno
from pathlib import Path

import pytest

from corpora.document import Document, TextSegment, to_members
from corpora.reader import Corpus
from corpora.shards import ShardWriter
from mllm.errors import UserError


def write_all(out_dir: Path, documents: list[Document]) -> None:
    with ShardWriter(out_dir, samples_per_shard=10) as writer:
        for document in documents:
            writer.write(document)


def test_a_plain_webdataset_reader_reads_our_shards(corpus_dir, documents):
    import webdataset

    urls = [str(path) for path in sorted(corpus_dir.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [d.key for d in documents]
    for sample, document in zip(samples, documents, strict=True):
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        assert members == to_members(document)


def test_equal_documents_give_equal_bytes(tmp_path, documents):
    write_all(tmp_path / "a", documents)
    write_all(tmp_path / "b", documents)
    names = sorted(path.name for path in (tmp_path / "a").glob("*.tar"))
    assert names == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Corpus(tmp_path / "a").fingerprint == Corpus(tmp_path / "b").fingerprint


def test_a_writer_that_fails_leaves_nothing_a_reader_takes_for_whole(tmp_path, documents):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "c", samples_per_shard=10) as writer:
        for document in documents[:15]:
            writer.write(document)
        raise RuntimeError("killed")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["shard-000000.tar"]
    with pytest.raises(UserError, match="have no index"):
        Corpus(tmp_path / "c")


def test_a_full_disk_leaves_no_temporary_shard(tmp_path, documents, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("corpora.shards.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_all(tmp_path / "full", documents)
    assert list((tmp_path / "full").iterdir()) == []


def test_a_folder_with_shards_is_not_written_into(corpus_dir):
    with pytest.raises(UserError, match="holds shards already"):
        ShardWriter(corpus_dir)


def test_no_sample_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no sample to write"), ShardWriter(tmp_path / "empty"):
        pass


def test_a_key_with_a_dot_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="has a dot"),
        ShardWriter(tmp_path / "dots") as writer,
    ):
        writer.write(Document("a.b", (TextSegment("x"),)))

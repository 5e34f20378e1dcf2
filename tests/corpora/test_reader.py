"""Random access: any order, any thread, any process, the same samples."""

import json
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corpora.index import build_index
from corpora.reader import Corpus
from mllm.errors import BadSample, UserError

from .test_index import write_tar


def test_any_order_reads_what_was_written(corpus_dir, documents):
    corpus = Corpus(corpus_dir)
    order = random.Random(0).sample(range(len(documents)), len(documents))
    assert [corpus.document(i) for i in order] == [documents[i] for i in order]
    assert corpus.shard_of(12) == "shard-000001.tar"


def test_threads_share_a_corpus(corpus_dir, documents, monkeypatch):
    monkeypatch.setattr("corpora.reader.MAX_OPEN_SHARDS", 1)
    corpus = Corpus(corpus_dir)
    order = random.Random(1).choices(range(len(documents)), k=2000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(corpus.document, order)) == [documents[i] for i in order]
    handles = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    targets = [str(handle.resolve()) for handle in handles]
    assert sum(target.startswith(str(corpus_dir)) and ".tar" in target for target in targets) == 1


def test_a_corpus_pickles_as_its_paths(corpus_dir, documents):
    data = pickle.dumps(Corpus(corpus_dir))
    assert len(data) < 500
    assert pickle.loads(data).document(7) == documents[7]


def test_the_fingerprint_follows_content_not_sharding(corpus_dir, documents, tmp_path):
    from corpora.shards import ShardWriter

    with ShardWriter(tmp_path / "other", samples_per_shard=4) as writer:
        for document in documents:
            writer.write(document)
    assert Corpus(tmp_path / "other").fingerprint == Corpus(corpus_dir).fingerprint
    with ShardWriter(tmp_path / "fewer", samples_per_shard=4) as writer:
        for document in documents[1:]:
            writer.write(document)
    assert Corpus(tmp_path / "fewer").fingerprint != Corpus(corpus_dir).fingerprint


def test_bad_content_is_a_bad_sample(tmp_path):
    write_tar(tmp_path / "a.tar", [("good.txt", b"x"), ("bad.json", b"{")])
    build_index(tmp_path)
    corpus = Corpus(tmp_path)
    assert corpus.text_bytes.tolist() == [1, 0]
    with pytest.raises(BadSample, match=r"bad.json: not JSON"):
        corpus.document(1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda d: (d / "shard-000001.tar").unlink(), r"shard-000001.tar: .*is missing"),
        (lambda d: write_tar(d / "new.tar", [("a.txt", b"a")]), r"new.tar: .*newer than the index"),
        (lambda d: (d / "index" / "index.json").unlink(), "have no index; run `mllm corpora index"),
        (lambda d: (d / "index" / "index.json").write_text("{"), r"index.json: not JSON; run"),
        (lambda d: (d / "index" / "index.json").write_text("{}"), r"index version None, not 2"),
        (
            lambda d: next((d / "index").glob("arrays-*/text_bytes.npy")).write_bytes(b"x"),
            r"text_bytes.npy: missing or cut",
        ),
    ],
)
def test_an_index_that_does_not_fit_is_one_clear_line(corpus_dir, fault, message):
    fault(corpus_dir)
    with pytest.raises(UserError, match=message) as caught:
        Corpus(corpus_dir)
    assert "\n" not in str(caught.value)


def test_a_shard_of_another_size_is_refused_when_it_is_first_read(corpus_dir, documents):
    os.truncate(corpus_dir / "shard-000002.tar", 1024)
    corpus = Corpus(corpus_dir)
    assert corpus.document(0) == documents[0]
    with pytest.raises(UserError, match=r"shard-000002.tar: 1,024 bytes, but .* when indexed"):
        corpus.document(24)


def test_a_shard_that_goes_away_is_named(corpus_dir):
    corpus = Corpus(corpus_dir)
    (corpus_dir / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar: .*is missing"):
        corpus.document(10)


def test_no_corpus_at_all(tmp_path):
    with pytest.raises(UserError, match="no such corpus folder"):
        Corpus(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no .tar shard"):
        Corpus(tmp_path)


def test_a_shard_cut_while_open_is_no_short_sample(corpus_dir):
    corpus = Corpus(corpus_dir)
    corpus.document(0)
    os.truncate(corpus_dir / "shard-000000.tar", 600)
    with pytest.raises(UserError, match="cut after indexing"):
        corpus.document(9)


def test_the_index_says_how_many_samples_are_bad(tmp_path):
    write_tar(tmp_path / "a.tar", [("good.txt", b"x"), ("bad.json", b"{")])
    build_index(tmp_path)
    assert json.loads((tmp_path / "index" / "index.json").read_bytes())["num_bad_samples"] == 1

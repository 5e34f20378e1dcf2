"""Random access: any order, any thread, any process, the same samples."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.document import ImageSegment
from corpora.index import build_index
from corpora.reader import Corpus
from corpora.storage import LocalShard
from mllm.errors import BadSample, UserError
from tokenizer.tokenizer import Tokenizer

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


def read_all(corpus: Corpus) -> list:
    return [corpus.document(i) for i in range(len(corpus))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(corpus_dir, documents, method):
    corpus = Corpus(corpus_dir)
    corpus.document(0)  # an open shard
    with corpus._lock, multiprocessing.get_context(method).Pool(2) as pool:  # held at the fork
        assert pool.map_async(read_all, [corpus] * 2).get(timeout=60) == [documents, documents]


def test_a_fork_reads_through_its_own_files(corpus_dir, documents):
    corpus = Corpus(corpus_dir)
    corpus.document(0)
    with corpus._lock:  # another thread may hold it when a process forks
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if read_all(corpus) == documents else 1)
    assert os.waitpid(child, 0)[1] == 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_samples_are_found_by_key_url_and_content(found_world, data):
    corpus, urls = found_world
    numbers = st.lists(st.integers(0, len(corpus) - 1), max_size=4)
    by_key, by_url, by_hash = data.draw(numbers), data.draw(numbers), data.draw(numbers)
    keys = {corpus.key(i) for i in by_key}
    wanted = {urls[i] for i in by_url}
    hashes = {corpus.content_hashes[i].tobytes().hex() for i in by_hash}
    expected = [
        i
        for i in range(len(corpus))
        if corpus.key(i) in keys
        or urls[i] in wanted
        or corpus.content_hashes[i].tobytes().hex() in hashes
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corpora.reader.SCAN", data.draw(st.integers(1, 50)))
        found = corpus.find(
            keys={*keys, "absent"},
            urls={*wanted, "https://absent"},
            hashes={*hashes, "ab" * 16},
        )
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.fixture(scope="module")
def found_world(tmp_path_factory):
    """40 samples in two shards: keys, URLs and contents that repeat."""
    folder = tmp_path_factory.mktemp("found")
    urls = [f"https://host/{number % 15}" for number in range(40)]
    for shard in (0, 1):
        members = [
            (f"key-{number % 30}.json", b'{"text": "x", "url": "%s"}' % urls[number].encode())
            for number in range(shard * 20, shard * 20 + 20)
        ]
        write_tar(folder / f"{shard}.tar", members)
    build_index(folder)
    return Corpus(folder), urls


def test_finding_reads_no_sample(corpus_dir, monkeypatch):
    corpus = Corpus(corpus_dir)
    monkeypatch.setattr("corpora.reader.open_shard", lambda *_: pytest.fail("opens a shard"))
    assert corpus.find(keys=["sample-0003"]).tolist() == [3]
    assert corpus.find().tolist() == []


@pytest.mark.parametrize("value", ["", "ab", "zz" * 16, "ab" * 32])
def test_what_is_no_content_hash_is_refused(corpus_dir, value):
    with pytest.raises(UserError, match="32 hexadecimal digits"):
        Corpus(corpus_dir).find(hashes=[value])


def test_opening_opens_no_shard_and_asks_for_no_size(corpus_dir, monkeypatch):
    opened = []
    monkeypatch.setattr("corpora.reader.open_shard", lambda *names: opened.append(names))
    real = os.stat
    monkeypatch.setattr(
        os,
        "stat",
        lambda path, *a, **k: opened.append(path) if ".tar" in str(path) else real(path, *a, **k),
    )
    Corpus(corpus_dir)
    assert opened == []


def test_a_text_with_nul_comes_back_from_the_tokenizer(world):
    tokenizer = Tokenizer(world.tokenizer_dir)
    assert tokenizer.decode(tokenizer.encode("a\0b\0")) == "a\0b\0"


def without_pictures(document):
    segments = tuple(
        replace(s, data=b"") if isinstance(s, ImageSegment) else s for s in document.segments
    )
    return replace(document, segments=segments)


def test_a_text_document_is_the_document_without_the_bytes_of_pictures(corpus_dir, documents):
    corpus = Corpus(corpus_dir)
    found = [corpus.text_document(i) for i in range(len(corpus))]
    assert found == [without_pictures(document) for document in documents]


PLACES = {  # members of one sample, in any order
    "jpg": b"picture",
    "0.png": b"another",
    "txt": b"text",
    "cls": b"7",
    "json": st.sampled_from(
        [
            b'{"url": "u"}',
            b'{"text": "inside"}',
            b'{"segments": [{"image": "0"}, {"text": "after"}]}',
            b'{"turns": [{"role": "user", "segments": [{"text": "ask"}, {"image": "0"}]}]}',
            b'{"segments": [{"image": "9"}]}',
            b"[]",
        ]
    ),
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_the_members_a_text_document_says_the_same(data):
    """Any members in any order, good and bad: the same segments, or the same words of refusal."""
    names = data.draw(st.lists(st.sampled_from(sorted(PLACES)), min_size=1, unique=True))
    json_member = data.draw(PLACES["json"])
    with tempfile.TemporaryDirectory() as folder:
        write_tar(
            Path(folder) / "a.tar",
            [(f"k.{name}", json_member if name == "json" else PLACES[name]) for name in names],
        )
        build_index(folder)
        corpus = Corpus(folder)
        try:
            expected = without_pictures(corpus.document(0))
        except BadSample as error:
            with pytest.raises(BadSample) as caught:
                corpus.text_document(0)
            assert str(caught.value) == str(error)
        else:
            assert corpus.text_document(0) == expected


def test_a_text_document_costs_the_text_alone(tmp_path, monkeypatch):
    picture = b"\xff\xd8" + bytes(100_000)
    write_tar(
        tmp_path / "a.tar",
        [
            *(("0.jpg", picture), ("0.json", b"{}"), ("0.txt", b"neighbours")),
            *(("1.txt", b"apart"), ("1.jpg", picture), ("1.json", b"{}")),
            ("2.jpg", picture),
        ],
    )
    build_index(tmp_path)
    asked: list[int] = []
    real = LocalShard.read
    monkeypatch.setattr(LocalShard, "read", lambda *place: asked.append(place[2]) or real(*place))
    corpus = Corpus(tmp_path)
    reads = []
    for i in range(3):
        asked.clear()
        corpus.text_document(i)
        reads.append(len(asked))
        assert sum(asked) < 4096
    assert reads == [1, 2, 0]


def test_texts_that_are_expected_are_those_that_are_read(corpus_dir, monkeypatch):
    corpus = Corpus(corpus_dir)
    places: dict[str, list] = {"expect": [], "read": []}
    for name, found in places.items():
        real = getattr(LocalShard, name)
        monkeypatch.setattr(
            LocalShard,
            name,
            lambda shard, *place, found=found, real=real: (
                found.append((shard.path, *place)) or real(shard, *place)
            ),
        )
    corpus.expect_texts(range(len(corpus)))
    for i in range(len(corpus)):
        corpus.text_document(i)
    assert places["expect"] == places["read"] != []

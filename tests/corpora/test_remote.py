"""Remote shards read like local ones: bytes, requests, versions."""

import io
import os
import random
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.chunk_cache import ChunkCache
from corpora.index import build_index
from corpora.reader import Corpus
from corpora.remote import RemoteShard
from corpora.sidecar import content_hash
from corpora.storage import list_shards, open_shard
from corpora.transfer import RemoteSettings, transfer_report
from mllm.errors import UserError

CONTENT = random.Random(5).randbytes(3000)


def put(path: str, content: bytes) -> str:
    fsspec.filesystem("memory").pipe(path, content)
    return f"memory://{path.lstrip('/')}"


def counted(work) -> dict[str, float]:
    before = transfer_report()
    work()
    after = transfer_report()
    return {name: after[name] - before[name] for name in before}


def small(cache_dir: Path, **changes) -> RemoteSettings:
    given = {"chunk_bytes": 100, "cache_bytes": 100_000, "max_request_bytes": 500, "attempts": 1}
    return RemoteSettings(cache_dir=cache_dir, **{**given, **changes})


@given(
    content_bytes=st.integers(1, 3000),
    chunk_bytes=st.integers(1, 700),
    limit_chunks=st.floats(0, 12),
    request_chunks=st.floats(0.5, 9),
    reads=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1500)), max_size=25),
)
@settings(deadline=None, max_examples=40)
def test_any_reads_over_any_cache_are_the_bytes(
    tmp_path_factory, content_bytes, chunk_bytes, limit_chunks, request_chunks, reads
):
    content = CONTENT[:content_bytes]
    limit = int(limit_chunks * (chunk_bytes + 4))
    cache_dir = tmp_path_factory.mktemp("cache")
    shard = RemoteShard(
        put("/any/a.tar", content),
        small(
            cache_dir,
            chunk_bytes=chunk_bytes,
            cache_bytes=limit,
            max_request_bytes=int(request_chunks * chunk_bytes),
        ),
    )
    assert shard.size == content_bytes
    for offset, size in reads:
        if offset + size > content_bytes:
            with pytest.raises(UserError, match="ends before byte"):
                shard.read(offset, size)
        else:
            assert shard.read(offset, size) == content[offset : offset + size]
        on_disk = sum(path.stat().st_size for path in cache_dir.rglob("chunks/*"))
        assert on_disk <= limit


@given(
    chunk_bytes=st.integers(20, 400),
    window=st.integers(1, 6),
    reads=st.lists(st.tuples(st.integers(0, 2999), st.integers(1, 1500)), min_size=1, max_size=12),
)
@settings(deadline=None, max_examples=30)
def test_a_run_of_missing_neighbours_is_one_request(tmp_path_factory, chunk_bytes, window, reads):
    shard = RemoteShard(
        put("/runs/a.tar", CONTENT),
        small(
            tmp_path_factory.mktemp("cache"),
            chunk_bytes=chunk_bytes,
            max_request_bytes=window * chunk_bytes,
        ),
    )
    have: set[int] = set()
    for offset, size in reads:
        stop = min(offset + size, len(CONTENT))
        wanted = sorted({byte // chunk_bytes for byte in range(offset, stop)})
        expected, previous = 0, None
        for place, number in enumerate(wanted):  # by hand: a request begins after any gap
            if number in have:
                previous = None
                continue
            expected += previous is None or place % window == 0
            previous = number
        have.update(wanted)
        transferred = counted(lambda o=offset, s=stop: shard.read(o, s - o))
        assert transferred["requests"] == expected
        assert transferred["bytes_asked"] == stop - offset


def test_every_request_is_whole_chunks_of_eight_mebibytes_by_default(tmp_path):
    content = random.Random(1).randbytes(20 << 20)
    shard = RemoteShard(put("/big/a.tar", content), RemoteSettings(cache_dir=tmp_path))
    first = counted(lambda: shard.read(5, 10))
    assert (first["requests"], first["bytes_fetched"]) == (1, 8 << 20)
    rest = counted(lambda: shard.read(0, len(content)))
    assert (rest["requests"], rest["bytes_fetched"]) == (1, 12 << 20)
    assert (rest["cache_hits"], rest["chunk_reads"]) == (1, 3)
    again = counted(lambda: shard.read(100, 19 << 20))
    assert again["requests"] == 0


def test_a_replaced_object_is_never_served_stale(tmp_path):
    url = put("/replaced/a.tar", CONTENT)
    old = RemoteShard(url, small(tmp_path))
    assert old.read(0, 250) == CONTENT[:250]
    put("/replaced/a.tar", CONTENT[::-1])  # as long as before
    assert RemoteShard(url, small(tmp_path)).read(0, 250) == CONTENT[::-1][:250]
    assert old.read(0, 250) == CONTENT[:250]  # pinned to what it opened
    with pytest.raises(UserError, match="was replaced while it was being read"):
        old.read(1000, 10)


def test_a_second_open_finds_the_chunks_of_the_first(tmp_path):
    url = put("/again/a.tar", CONTENT)
    RemoteShard(url, small(tmp_path)).read(0, 3000)
    assert counted(lambda: RemoteShard(url, small(tmp_path)).read(0, 3000))["requests"] == 0
    other = small(tmp_path, chunk_bytes=64)
    assert counted(lambda: RemoteShard(url, other).read(0, 10))["requests"] == 1


def test_a_damaged_chunk_is_fetched_again(tmp_path):
    url = put("/damaged/a.tar", CONTENT)
    RemoteShard(url, small(tmp_path)).read(0, 3000)
    chunks = sorted((tmp_path / "chunks").iterdir())
    assert len(chunks) == 30
    os.truncate(chunks[3], 50)
    chunks[7].write_bytes(b"\0" * 104)  # a power cut leaves such
    chunks[9].write_bytes(b"")
    # A cache of its own, as in a new process: this one has verified them.
    fresh = ChunkCache(tmp_path, 100_000, 1.0)
    found = [fresh.read(path.name, 100, 0, 100) is not None for path in chunks]
    assert [n for n, is_whole in enumerate(found) if not is_whole] == [3, 7, 9]
    assert RemoteShard(url, small(tmp_path)).read(0, 3000) == CONTENT


def test_a_folder_lists_only_its_own_shards(monkeypatch, tmp_path):
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path))
    for name in ("b.tar", "a.tar", "index.json", "deeper/c.tar"):
        put(f"/listed/{name}", CONTENT)
    assert list_shards("memory://listed") == ["a.tar", "b.tar"]
    assert open_shard("memory://listed/", "b.tar").read(10, 5) == CONTENT[10:15]
    with pytest.raises(UserError, match=r"memory://listed/x.tar: no such object"):
        open_shard("memory://listed", "x.tar")
    with pytest.raises(UserError, match=r"holds no \.tar shard"):
        put("/empty/readme", b"")
        list_shards("memory://empty")


def test_without_room_on_disk_reads_go_on_with_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    shard = RemoteShard(put("/full/a.tar", CONTENT), small(tmp_path / "file"))
    transferred = counted(
        lambda: [
            pytest.fail("wrong bytes")
            for at in range(0, 3000, 10)
            if shard.read(at, 10) != CONTENT[at : at + 10]
        ]
    )
    assert transferred["requests"] == 30  # neighbours still share a chunk, in memory
    assert [record.message.partition(": ")[2][:20] for record in caplog.records] == [
        "cannot keep chunks o"
    ]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MLLM_SHARD_CACHE_GIB", "lots", "MLLM_SHARD_CACHE_GIB=lots: not a number"),
        ("MLLM_REMOTE_ATTEMPTS", "0", "MLLM_REMOTE_ATTEMPTS=0: give a larger number"),
        ("MLLM_REMOTE_REQUESTS", "-1", "MLLM_REMOTE_REQUESTS=-1: not a number"),
        ("MLLM_STORAGE_OPTIONS", '{"s3": "hunter22"}', "MLLM_STORAGE_OPTIONS: not JSON of"),
        ("MLLM_STORAGE_OPTIONS", "hunter22", "MLLM_STORAGE_OPTIONS: not JSON of"),
    ],
)
def test_settings_that_cannot_be_read_are_named(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message) as refused:
        RemoteSettings.from_environment()
    assert "hunter22" not in str(refused.value)


def test_settings_come_from_the_environment(monkeypatch, tmp_path):
    for name in ("MLLM_CACHE", "MLLM_STORAGE_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
    assert RemoteSettings.from_environment() == RemoteSettings()
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path))
    monkeypatch.setenv("MLLM_SHARD_CACHE_GIB", "0.5")
    monkeypatch.setenv("MLLM_STORAGE_OPTIONS", '{"s3": {"anon": true}}')
    found = RemoteSettings.from_environment()
    assert (found.cache_dir, found.cache_bytes) == (tmp_path / "shards", 1 << 29)
    assert found.storage_options == {"s3": {"anon": True}}
    assert "anon" not in repr(found)


def test_a_remote_shard_replaced_by_one_as_long_is_indexed_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
    for text in (b"one", b"two"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo("a.txt")
            info.size = 3
            tar.addfile(info, io.BytesIO(text))
        put("/anew/0.tar", file.getvalue())
        build_index("memory://anew", tmp_path / "index")
        corpus = Corpus("memory://anew", tmp_path / "index")
        assert corpus.members(0) == {"txt": text}
        corpus.expect_texts([0])
        assert corpus.text_document(0) == corpus.document(0)
        assert corpus.content_hashes.tobytes() == content_hash({"txt": text})

"""A whole corpus on a real S3 server behind a proxy that breaks every kind of answer."""

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from corpora import transfer
from corpora.document import Document, ImageSegment, TextSegment
from corpora.index import build_index
from corpora.reader import Corpus
from corpora.shards import ShardWriter
from corpora.storage import list_shards, open_shard
from mllm.errors import UserError
from mllm.files import fingerprint

from .remote_servers import Faults, Proxy, running, s3_server

pytestmark = pytest.mark.slow
KEY, SECRET = "AKIAHUNTER22", "hunter22secret"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A corpus of 4 shards with 3 MB each: noise under a picture's header, and captions."""
    folder, draws = tmp_path_factory.mktemp("s3") / "laion", random.Random(0)
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4) + (480).to_bytes(4)
    with ShardWriter(folder, samples_per_shard=40) as writer:
        for number in range(160):
            picture = png + draws.randbytes(draws.randrange(1_000, 150_000))
            caption = TextSegment(f"caption {number} " + "word " * draws.randrange(50))
            writer.write(Document(f"pair{number:04d}", (ImageSegment(picture), caption)))
    build_index(folder)
    return folder


@pytest.fixture(scope="module")
def bucket(local) -> Iterator[str]:
    """URL of an S3 server that holds the corpus at s3://bucket/laion, without its index."""
    with s3_server() as url:
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="bucket")
        for path in local.glob("*.tar"):
            client.upload_file(str(path), "bucket", f"laion/{path.name}")
        yield url


@pytest.fixture
def proxy(bucket, tmp_path, monkeypatch) -> Iterator[Proxy]:
    with running(Proxy(bucket)) as proxy:
        options = {"s3": {"endpoint_url": proxy.url, "key": KEY, "secret": SECRET}}
        monkeypatch.setenv("MLLM_STORAGE_OPTIONS", json.dumps(options))
        monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MLLM_REMOTE_TIMEOUT_SECONDS", "2")
        proxy.stall_seconds = 4.0
        yield proxy


def on_disk(cache_dir: Path) -> int:
    """Bytes of chunks, while others may add and remove."""
    total = 0
    for path in cache_dir.glob("shards/chunks/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_a_corpus_on_a_failing_s3_is_the_local_one(proxy, local, tmp_path, monkeypatch, capsys):
    """A quarter of the answers is spoilt; the cache holds less than half of the corpus."""
    corpus_bytes = sum(path.stat().st_size for path in local.glob("*.tar"))
    limit_gib = corpus_bytes * 0.4 / (1 << 30)
    monkeypatch.setenv("MLLM_SHARD_CACHE_GIB", str(limit_gib))
    monkeypatch.setenv("MLLM_SHARD_CHUNK_MIB", "0.25")
    proxy.fault = Faults(0.25)
    before = transfer.transfer_report()

    assert list_shards("s3://bucket/laion") == sorted(p.name for p in local.glob("*.tar"))
    assert build_index("s3://bucket/laion", tmp_path / "index") == []
    ours, theirs = Corpus("s3://bucket/laion", tmp_path / "index"), Corpus(local)
    assert (ours.fingerprint, ours.keys) == (theirs.fingerprint, theirs.keys)
    draws = random.Random(1)
    order = [i for block in draws.sample(range(16), 16) for i in range(block * 10, block * 10 + 10)]
    for i in order:
        assert ours.document(i) == theirs.document(i)
        assert on_disk(tmp_path / "cache") <= corpus_bytes * 0.4

    after = transfer.transfer_report()
    spoilt = sum(n for kind, n in proxy.faults.items() if kind != "slow")
    assert set(proxy.faults) == {"500", "cut", "slow", "short", "503", "stall"}
    assert after["retries"] - before["retries"] == spoilt > 5
    assert after["evictions"] > before["evictions"]
    with capsys.disabled():
        print(f"\n{transfer.transfer_line()}; spoilt: {dict(proxy.faults)}")


def read_all(index_dir: Path, seed: int, results) -> None:
    corpus = Corpus("s3://bucket/laion", index_dir)
    order = list(range(len(corpus)))
    random.Random(seed).shuffle(order)
    digest = {i: fingerprint(str(corpus.document(i))) for i in order}
    results.put((digest, transfer.transfer_report()))


def test_two_workers_share_the_cache_and_the_requests(proxy, local, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLM_SHARD_CHUNK_MIB", "0.25")
    build_index("s3://bucket/laion", tmp_path / "index")
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "fresh"))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=read_all, args=(tmp_path / "index", seed, results))
        for seed in range(2)
    ]
    for worker in workers:
        worker.start()
    (first, one), (second, two) = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert first == second
    num_chunks = sum(-(-path.stat().st_size // (1 << 18)) for path in local.glob("*.tar"))
    assert one["requests"] + two["requests"] <= num_chunks  # no chunk was fetched twice
    assert min(one["requests"], two["requests"]) > 0


def test_a_killed_reader_leaves_a_cache_that_others_use(proxy, local, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLM_SHARD_CHUNK_MIB", "0.25")
    build_index("s3://bucket/laion", tmp_path / "index")
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path / "fresh"))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=read_all, args=(tmp_path / "index", 3, results))
    worker.start()
    deadline = time.monotonic() + 60
    while on_disk(tmp_path / "fresh") < 2_000_000 and time.monotonic() < deadline:
        time.sleep(0.002)
    assert worker.pid and worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    ours, theirs = Corpus("s3://bucket/laion", tmp_path / "index"), Corpus(local)
    before = transfer.transfer_report()
    assert all(ours.document(i) == theirs.document(i) for i in range(160))
    requests = transfer.transfer_report()["requests"] - before["requests"]
    num_chunks = sum(-(-path.stat().st_size // (1 << 18)) for path in local.glob("*.tar"))
    assert 0 < requests <= num_chunks - 2_000_000 // (1 << 18)  # the dead one's chunks serve


def test_a_server_that_stays_broken_is_one_line(proxy, tmp_path):
    proxy.fault = Faults(1.0, ("500",))
    environment = {**os.environ, "MLLM_REMOTE_ATTEMPTS": "2"}
    command = [sys.executable, "-m", "mllm.cli", "corpora", "index", "s3://bucket/laion"]
    ran = subprocess.run(
        [*command, "--index-dir", str(tmp_path / "index")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "s3://bucket/laion/shard-000000.tar: cannot be read after 2 attempts" in ran.stderr
    assert not any(secret in ran.stderr + ran.stdout for secret in (KEY, SECRET))


def test_what_is_not_there_or_not_allowed_is_one_line(proxy, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    said = []
    for work, message in (
        (lambda: open_shard("s3://bucket/laion", "x.tar"), "x.tar: no such object or bucket"),
        (lambda: list_shards("s3://no-such-bucket/laion"), "laion: no such object or bucket"),
        (lambda: list_shards("s3://bucket/nothing"), "nothing: no such object or bucket"),
    ):
        with pytest.raises(UserError, match=message) as error:
            work()
        said.append(str(error.value))
    proxy.fault = Faults(1.0, ("403",))
    with pytest.raises(UserError, match="access refused; check the credentials for s3"):
        open_shard("s3://bucket/laion", "shard-000000.tar")
    said += [record.getMessage() for record in caplog.records]
    assert not [text for text in said if KEY in text or SECRET in text]

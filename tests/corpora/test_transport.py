"""Requests over real sockets: attempts, errors in one line, forks, and secrets kept."""

import json
import logging
import multiprocessing
import pickle
import random
import socket
import traceback
from pathlib import Path

import pytest

from corpora.remote import RemoteShard
from corpora.storage import list_shards, open_shard
from corpora.transfer import RemoteSettings, transfer_report
from corpora.transport import RemoteUnavailable, redacted
from mllm.errors import UserError

from .remote_servers import Faults, FolderServer, running

CONTENT = random.Random(5).randbytes(300_000)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLLM_ALLOW_HTTP", "1")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "shard-00.tar").write_bytes(CONTENT)
    with running(FolderServer(folder)) as server:
        yield server


def settings(tmp_path: Path, **changes) -> RemoteSettings:
    given = {
        "chunk_bytes": 10_000,
        "max_request_bytes": 40_000,
        "attempts": 5,
        "back_off_seconds": 0.01,
        "timeout_seconds": 0.4,
    }
    return RemoteSettings(cache_dir=tmp_path / "cache", **{**given, **changes})


def test_http_ranges_are_the_bytes(server, tmp_path):
    shard = RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path))
    draws = random.Random(0)
    assert shard.size == len(CONTENT)
    for _ in range(100):
        start = draws.randrange(len(CONTENT))
        stop = draws.randrange(start, min(start + 60_000, len(CONTENT)) + 1)
        assert shard.read(start, stop - start) == CONTENT[start:stop]
    ranges = [r for _, _, r in server.requests[1:]]
    starts = [int(r.removeprefix("bytes=").partition("-")[0]) for r in ranges]
    assert all(start % 10_000 == 0 for start in starts)
    assert len(set(starts)) == len(starts) <= 30  # no chunk twice


def test_http_corpora_are_named_by_braces(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path))
    place = f"{server.url}/shard-{{00..00}}.tar"
    assert list_shards(place) == ["shard-00.tar"]
    assert open_shard(place, "shard-00.tar").read(299_990, 10) == CONTENT[-10:]


@pytest.mark.parametrize("kind", ["500", "503", "cut", "short", "stall", "slow"])
def test_a_fault_that_passes_costs_an_attempt_and_no_bytes(server, tmp_path, kind):
    shard = RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path, max_request_bytes=10_000))
    server.stall_seconds = 1.0
    faulty = iter([kind, "", kind, ""] if kind != "stall" else [kind, ""])
    server.fault = lambda command, headers: next(faulty, "")
    before = transfer_report()
    assert b"".join(shard.read(at, 10_000) for at in range(0, 60_000, 10_000)) == CONTENT[:60_000]
    after = transfer_report()
    retried = after["retries"] - before["retries"]
    assert retried == (0 if kind == "slow" else server.faults[kind])
    assert server.faults[kind] == (1 if kind == "stall" else 2)
    assert after["requests"] - before["requests"] == 6 + retried
    assert after["bytes_fetched"] - before["bytes_fetched"] == 60_000


@pytest.mark.parametrize("kind", ["500", "cut", "short"])
def test_a_fault_that_lasts_is_one_line_after_all_attempts(server, tmp_path, kind):
    shard = RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path))
    server.fault = Faults(1.0, (kind,))
    with pytest.raises(
        OSError, match=r"/shard-00.tar: cannot be read after 5 attempts \("
    ) as error:
        shard.read(0, 100)
    assert type(error.value) is RemoteUnavailable
    assert "\n" not in str(error.value)
    assert server.faults[kind] == 5


def test_a_request_that_crawls_is_cut_off(server, tmp_path):
    """Each byte comes in time, the whole never would."""
    crawling = settings(tmp_path, attempts=1, slowest_bytes_per_second=10**9, timeout_seconds=0.1)
    shard = RemoteShard(f"{server.url}/shard-00.tar", crawling)
    server.fault = Faults(1.0, ("slow",))
    with pytest.raises(RemoteUnavailable, match="timed out"):
        shard.read(0, 100)


@pytest.mark.parametrize(
    ("path", "message"),
    [("absent.tar", "absent.tar: no such object"), ("empty.tar", "empty.tar: is empty")],
)
def test_what_no_attempt_mends_is_asked_for_once(server, tmp_path, path, message):
    (server.folder / "empty.tar").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        RemoteShard(f"{server.url}/{path}", settings(tmp_path))
    assert len(server.requests) == 1


def test_refused_access_is_asked_for_once(server, tmp_path):
    server.fault = Faults(1.0, ("403",))
    with pytest.raises(UserError, match="access refused; check the credentials"):
        RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path))
    assert len(server.requests) == 1


def test_a_server_without_ranges_is_refused_before_it_sends_the_shard(server, tmp_path):
    server.knows_ranges = False
    with pytest.raises(UserError, match="does not serve ranges of bytes"):
        RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path))


def test_a_replaced_shard_stops_its_readers(server, tmp_path):
    shard = RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path))
    shard.read(0, 10)
    (server.folder / "shard-00.tar").write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match="was replaced while it was being read"):
        shard.read(100_000, 10)
    anew = RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path))
    assert anew.read(0, 10) == CONTENT[::-1][:10]


def read_in_child(shard: RemoteShard, results) -> None:
    results.put([shard.read(at, 500) for at in range(0, 300_000, 30_000)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_beside_their_parent(server, tmp_path, method):
    """A forked worker must not touch its parent's connections or event loop."""
    shard = RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path, cache_bytes=0))
    expected = [CONTENT[at : at + 500] for at in range(0, 300_000, 30_000)]
    assert shard.read(0, 500) == expected[0]  # the parent's loop runs
    context = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=read_in_child, args=(shard, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [shard.read(at, 500) for at in range(0, 300_000, 30_000)] == expected
    assert [results.get(timeout=60) for _ in workers] == [expected, expected]
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert shard.read(155_000, 500) == CONTENT[155_000:155_500]


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r'gs://: gcsfs is missing; pip install "mllm\[remote\]"'):
        RemoteShard("gs://bucket/a.tar", settings(tmp_path))


SECRETS = ("AKIAHUNTER", "hunter22secret", "hunter22token", "hunter22bearer", "hunter22sig")


def test_credentials_appear_nowhere(server, tmp_path, monkeypatch, caplog, capfd):
    """Not in logs at any level, errors with their tracebacks, reprs, or names of cached files."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MLLM_CACHE", str(tmp_path))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    key, secret, token, bearer, signature = SECRETS
    options = {
        "s3": {"key": key, "secret": secret, "token": token, "endpoint_url": server.url},
        "http": {
            "headers": {"Authorization": f"Bearer {bearer}"},
            "params": {"X-Amz-Signature": signature},
        },
    }
    monkeypatch.setenv("MLLM_STORAGE_OPTIONS", json.dumps(options))
    monkeypatch.setenv("MLLM_REMOTE_ATTEMPTS", "1")
    said = [repr(RemoteSettings.from_environment())]
    shard = open_shard(server.url, "shard-00.tar")
    assert shard.read(0, 100) == CONTENT[:100]
    assert all(signature in path for _, path, _ in server.requests)  # it was really sent
    said += [repr(shard), str(vars(shard)["_identity"])]
    for kind in ("500", "403", "cut", "short"):
        server.fault = Faults(1.0, (kind,))
        for place in (server.url, dead, "s3://bucket"):
            for work in (
                lambda place=place: open_shard(place, "shard-01.tar"),
                lambda: shard.read(200_000, 100),
                lambda: list_shards("s3://bucket"),
            ):
                try:
                    work()
                except (OSError, UserError) as error:
                    said.append("".join(traceback.format_exception(error)))
    said += [str(path) for path in tmp_path.rglob("*")]
    said += [record.getMessage() for record in caplog.records]
    said += capfd.readouterr()
    assert len(said) > 25
    for secret in SECRETS:
        assert not [text for text in said if secret in text]


def test_redaction_of_what_libraries_say(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtn")
    options = {"s3": {"key": "AKIA1", "client_kwargs": {"verify": ["hunter22"]}}}
    text = redacted(
        "GET https://me:pw@host/a.tar?X-Amz-Signature=abc failed,\n key AKIA1 hunter22 wJalrXUtn",
        RemoteSettings(storage_options=options),
    )
    assert text == "GET https://host/a.tar?*** failed, key *** *** ***"


def test_a_shard_pickles_without_its_connection(server, tmp_path):
    shard = RemoteShard(f"{server.url}/shard-00.tar", settings(tmp_path))
    shard.read(0, 10)
    again = pickle.loads(pickle.dumps(shard))
    assert again.read(5, 10) == CONTENT[5:15]

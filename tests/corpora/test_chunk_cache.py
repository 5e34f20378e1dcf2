"""The chunk cache under many processes, kills and a disk that fails."""

import multiprocessing
import os
import random
import resource
import signal
import time
import zlib
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from corpora import transfer
from corpora.chunk_cache import ChunkCache

LENGTH = 20_000
LONG = random.Random(9).randbytes(8 << 20)  # takes long enough to write to be killed half-way
CONTEXT = multiprocessing.get_context("fork")


def chunk_of(name: str) -> bytes:
    return random.Random(name).randbytes(LENGTH)


def on_disk(folder: Path) -> int:
    """Bytes of chunks and of one being written, while others add and remove."""
    total = 0
    for path in (*folder.glob("chunks/*"), folder / "aside"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def writes_at_once(folder: Path, barrier, results: Queue, seed: int) -> None:
    cache = ChunkCache(folder, 1 << 30, 10.0)
    barrier.wait(30)
    for number in range(12):
        cache.store(f"{seed}-{number}", LONG)
    results.put([cache.read(f"{seed}-{n}", len(LONG), 0, len(LONG)) == LONG for n in range(12)])


def test_writers_take_turns(tmp_path):
    barrier, results = CONTEXT.Barrier(3), CONTEXT.Queue()
    workers = [
        CONTEXT.Process(target=writes_at_once, args=(tmp_path, barrier, results, seed))
        for seed in range(3)
    ]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [[True] * 12] * 3
    for worker in workers:
        worker.join()
    assert int((tmp_path / "lock").read_bytes()) == 36 * (len(LONG) + 4) == on_disk(tmp_path)


def read_at_random(folder: Path, limit: int, seed: int, results: Queue) -> None:
    cache = ChunkCache(folder, limit, 10.0)
    draws, wrong, fetched = random.Random(seed), 0, 0
    for _ in range(400):
        name = f"chunk-{draws.randrange(30):02d}"
        start = draws.randrange(LENGTH)
        stop = draws.randrange(start, LENGTH + 1)
        found = cache.read(name, LENGTH, start, stop)
        if found is None:
            fetched += 1
            cache.store(name, chunk_of(name))
        else:
            wrong += found != chunk_of(name)[start:stop]
    results.put((wrong, fetched, transfer.transfer_report()["evictions"]))


def test_processes_share_a_cache_under_eviction(tmp_path):
    limit, results = 12 * (LENGTH + 4), CONTEXT.Queue()
    workers = [
        CONTEXT.Process(target=read_at_random, args=(tmp_path, limit, seed, results))
        for seed in range(3)
    ]
    for worker in workers:
        worker.start()
    most = 0
    while any(worker.is_alive() for worker in workers):
        most = max(most, on_disk(tmp_path))
        time.sleep(0.001)
    found = [results.get(timeout=5) for _ in workers]
    assert [wrong for wrong, _, _ in found] == [0, 0, 0]
    # A chunk is renamed from aside between two looks of ours, so one may count twice.
    assert most <= limit + LENGTH + 4
    assert sum(evictions for _, _, evictions in found) > 20
    assert sum(fetched for _, fetched, _ in found) < 1200  # somebody hit
    assert ChunkCache(tmp_path, limit, 1.0).used_bytes() <= limit


def fetch_all(folder: Path, barrier, results: Queue, num: int) -> None:
    cache, fetched = ChunkCache(folder, 1 << 30, 30.0), 0
    for number in range(num):
        name = f"chunk-{number:02d}"
        barrier.wait(30)
        with cache.claimed([name]):
            if cache.read(name, LENGTH, 0, LENGTH) is None:
                fetched += 1
                time.sleep(0.02)  # a network
                cache.store(name, chunk_of(name))
    results.put(fetched)


def test_a_chunk_that_two_processes_want_at_once_is_fetched_once(tmp_path):
    barrier, results = CONTEXT.Barrier(2), CONTEXT.Queue()
    workers = [
        CONTEXT.Process(target=fetch_all, args=(tmp_path, barrier, results, 25)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    assert sum(results.get(timeout=60) for _ in workers) == 25
    for worker in workers:
        worker.join()
    assert not list((tmp_path / "claims").iterdir())


def hold_claim(folder: Path, ready) -> None:
    with ChunkCache(folder, 1 << 30, 1.0).claimed(["a"]):
        ready.set()
        time.sleep(60)


def test_a_claim_is_not_waited_for_forever_and_ends_with_its_process(tmp_path):
    ready = CONTEXT.Event()
    holder = CONTEXT.Process(target=hold_claim, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(10)
    began = time.monotonic()
    with ChunkCache(tmp_path, 1 << 30, 0.3).claimed(["a"]):
        assert 0.25 < time.monotonic() - began < 5
    assert holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    began = time.monotonic()
    with ChunkCache(tmp_path, 1 << 30, 30.0).claimed(["a"]):
        assert time.monotonic() - began < 5


def store_for_ever(folder: Path, limit: int, start) -> None:
    cache, number = ChunkCache(folder, limit, 5.0), 0
    start.set()
    while True:
        cache.store(f"{os.getpid()}-{number:05d}", LONG)
        number += 1


def test_killed_writers_leave_only_whole_chunks_and_a_free_lock(tmp_path):
    limit, draws, cut = 5 * (len(LONG) + 4), random.Random(3), 0
    for _ in range(15):
        start = CONTEXT.Event()
        writer = CONTEXT.Process(target=store_for_ever, args=(tmp_path, limit, start))
        writer.start()
        assert start.wait(10)
        time.sleep(draws.uniform(0.02, 0.06))
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        cut += (tmp_path / "aside").exists()
    assert cut > 2  # the kills did hit writers
    assert 0 < sum(path.stat().st_size for path in tmp_path.glob("chunks/*")) <= limit
    cache = ChunkCache(tmp_path, limit, 5.0)
    names = [path.name for path in (tmp_path / "chunks").iterdir()]
    assert names
    for name in names:
        assert cache.read(name, len(LONG), 0, len(LONG)) == LONG
    cache.store("after", chunk_of("after"))
    assert cache.read("after", LENGTH, 1, 9) == chunk_of("after")[1:9]


def test_the_least_recently_used_chunk_goes_first(tmp_path):
    cache = ChunkCache(tmp_path, 10 * (LENGTH + 4), 1.0)
    for number in range(10):
        cache.store(f"chunk-{number}", chunk_of(f"chunk-{number}"))
        os.utime(tmp_path / "chunks" / f"chunk-{number}", (number, number))
    assert cache.read("chunk-0", LENGTH, 0, 5) == chunk_of("chunk-0")[:5]  # used: no longer oldest
    cache.store("new", chunk_of("new"))
    left = {path.name for path in (tmp_path / "chunks").iterdir()}
    assert {"chunk-0", "chunk-9", "new"} <= left
    assert "chunk-1" not in left


def test_a_chunk_evicted_while_it_is_read_still_reads(tmp_path, monkeypatch):
    cache = ChunkCache(tmp_path, 1 << 20, 1.0)
    cache.store("a", chunk_of("a"))
    cache.read("a", LENGTH, 0, 1)
    real = os.fstat

    def evicted_now(handle: int) -> os.stat_result:
        (tmp_path / "chunks" / "a").unlink(missing_ok=True)
        return real(handle)

    monkeypatch.setattr("corpora.chunk_cache.os.fstat", evicted_now)
    assert cache.read("a", LENGTH, 5, 500) == chunk_of("a")[5:500]
    assert cache.read("a", LENGTH, 5, 500) is None


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b"x", lambda d: bytes(len(d)), lambda d: b"", None]
)
def test_a_chunk_that_is_not_whole_is_no_chunk(tmp_path, damage):
    ChunkCache(tmp_path, 1 << 20, 1.0).store("a", chunk_of("a"))
    path = tmp_path / "chunks" / "a"
    data = path.read_bytes()
    assert data[-4:] == zlib.crc32(chunk_of("a")).to_bytes(4, "little")
    path.write_bytes(damage(data) if damage else data[:99] + bytes([data[99] ^ 1]) + data[100:])
    cache = ChunkCache(tmp_path, 1 << 20, 1.0)
    assert cache.read("a", LENGTH, 0, 10) is None
    cache.store("a", chunk_of("a"))
    assert cache.read("a", LENGTH, 0, 10) == chunk_of("a")[:10]


@pytest.mark.parametrize("count", [b"", b"rubbish", b"999999999999"])
def test_a_lost_or_wrong_count_of_bytes_mends_itself(tmp_path, count):
    cache = ChunkCache(tmp_path, 5 * (LENGTH + 4), 1.0)
    for name in "abc":
        cache.store(name, chunk_of(name))
    (tmp_path / "lock").write_bytes(count)
    for name in "defgh":
        cache.store(name, chunk_of(name))
        assert cache.used_bytes() <= 5 * (LENGTH + 4)
    assert cache.used_bytes() >= 3 * (LENGTH + 4)
    assert int((tmp_path / "lock").read_bytes()) == cache.used_bytes()


def store_on_a_full_disk(folder: Path, results: Queue) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LENGTH // 2, LENGTH // 2))  # writes fail half-way
    cache = ChunkCache(folder, 1 << 30, 1.0)
    for name in ("a", "b", "c", "d", "e", "f"):
        cache.store(name, chunk_of(name))
    found = [cache.read(name, LENGTH, 3, 30) == chunk_of(name)[3:30] for name in "abcdef"]
    results.put((found, sorted(path.name for path in folder.rglob("*") if path.is_file())))


def test_a_full_disk_leaves_no_half_chunk_and_a_few_chunks_in_memory(tmp_path):
    results = CONTEXT.Queue()
    worker = CONTEXT.Process(target=store_on_a_full_disk, args=(tmp_path, results))
    worker.start()
    found, files = results.get(timeout=20)
    worker.join()
    assert found == [False, False, True, True, True, True]
    assert files == ["lock"]


def test_a_cache_of_another_user_is_read(tmp_path, monkeypatch):
    ChunkCache(tmp_path, 1 << 20, 1.0).store("a", chunk_of("a"))

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("corpora.chunk_cache.os.utime", refuse)
    assert ChunkCache(tmp_path, 1 << 20, 1.0).read("a", LENGTH, 2, 9) == chunk_of("a")[2:9]

"""A block-shuffled epoch over a corpus on a local S3: our chunk cache beside fsspec and webdataset.

All sides read the same bucket of moto's server over loopback, without latency: the rates compare
overheads, the requests and bytes per gigabyte delivered are what a real store charges for. Ours,
`readahead` and `blockcache` read the same samples in the same order; ours may hold half of the
corpus on disk, `blockcache` as much in memory for each open file of one process; webdataset reads
whole shards in sequence, the order in which it is at its best and which cannot be sought.
"""

import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from corpora.document import Document, ImageSegment, TextSegment
from corpora.remote import RemoteShard
from corpora.shards import ShardWriter
from corpora.storage import list_shards, open_shard
from corpora.tar import read_samples
from corpora.transfer import MIB, RemoteSettings, transfer_report
from mllm.bench import machine
from mllm.stream.permute import epoch_row, hash_key

NUM_SAMPLES, SAMPLES_PER_SHARD = 1600, 400
BLOCK_SAMPLES = 400  # as many of a corpus of four blocks as a run's 4,096 rows of a large one
PICTURE_BYTES = 60_000
CHUNK_BYTES = 8 * MIB
READAHEAD_SAMPLES = 12  # each costs it a request for a chunk or more: the rest would tell no more
ROUNDS = 3
CREDENTIALS = {"key": "bench", "secret": "bench"}


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, _s3_server() as url:
        local = Path(folder) / "corpus"
        _write_corpus(local)
        files = _counting_s3(url)
        files.call_s3("create_bucket", Bucket="bucket")
        for path in sorted(local.glob("*.tar")):
            files.put(str(path), f"bucket/{path.name}")
        places = _places(local)
        corpus_bytes = sum(path.stat().st_size for path in local.glob("*.tar"))
        settings = RemoteSettings(
            chunk_bytes=CHUNK_BYTES,
            cache_bytes=corpus_bytes // 2,
            storage_options={"s3": {"endpoint_url": url, **CREDENTIALS}},
        )
        keys = np.full(NUM_SAMPLES, hash_key("bench"), np.uint64)
        order = epoch_row(np.arange(NUM_SAMPLES), NUM_SAMPLES, keys, BLOCK_SAMPLES, 1).tolist()
        moved: dict[str, Counter[str]] = {}
        sides = {
            "ours": partial(_ours, settings, Path(folder), places, order),
            "fsspec blockcache": partial(_fsspec, files, "blockcache", places, order),
            "fsspec readahead": partial(
                _fsspec, files, "readahead", places, order[:READAHEAD_SAMPLES]
            ),
            "webdataset, in sequence": partial(_webdataset, files, sorted({p[0] for p in places})),
        }
        rates = machine.interleaved(
            {
                name: partial(_moved, work, moved.setdefault(name, Counter()), files)
                for name, work in sides.items()
            },
            ROUNDS,
        )
        return {
            "machine": machine.describe("fsspec", "s3fs", "webdataset", "moto"),
            "corpus_bytes": corpus_bytes,
            "samples": NUM_SAMPLES,
            "chunk_bytes": CHUNK_BYTES,
            "sides": {
                name: {
                    "mb_per_second": rates[name]["median"],
                    "mb_per_second_rates": rates[name]["rates"],
                    "requests_per_gb_delivered": counts["requests"] / (counts["delivered"] / 1e9),
                    "fetched_per_byte_delivered": counts["fetched"] / counts["delivered"],
                    "cache_hit_share": counts["hits"] / max(counts["looks"], 1),
                    "evictions_per_epoch": counts["evictions"] / ROUNDS,
                }
                for name, counts in moved.items()
            },
        }


def lines(result: dict[str, Any]) -> list[str]:
    shown = [
        f"{result['samples']:,} samples, {result['corpus_bytes'] / 1e6:,.0f} MB on moto's S3, "
        f"chunks of {result['chunk_bytes'] / MIB:.0f} MiB, caches of half the corpus"
    ]
    for name, side in result["sides"].items():
        hits = f", {side['cache_hit_share']:.1%} cache hits" if side["cache_hit_share"] else ""
        shown.append(
            f"{name:24} {side['mb_per_second']:8,.1f} MB/s "
            f"{side['requests_per_gb_delivered']:9,.0f} requests per GB delivered, "
            f"{side['fetched_per_byte_delivered']:7.2f} bytes fetched per byte{hits}"
        )
    return shown


# ---------------------------------------------------------------- sides; each returns bytes read

Place = tuple[str, int, int]  # shard, offset, bytes of a sample


def _ours(settings: RemoteSettings, folder: Path, places: list[Place], order: list[int]) -> int:
    """From an empty cache, as a run's first epoch."""
    with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
        settings = replace(settings, cache_dir=Path(cache_dir))
        shards: dict[str, RemoteShard] = {}
        delivered = 0
        for sample in order:
            name, offset, size = places[sample]
            if name not in shards:
                shards[name] = RemoteShard(f"s3://bucket/{name}", settings)
            delivered += len(shards[name].read(offset, size))
        return delivered


def _fsspec(files: Any, cache_type: str, places: list[Place], order: list[int]) -> int:
    """`open().seek().read()` per sample, one open file a shard."""
    # Half of the corpus for each open file: one budget over all files is not to be had.
    blocks = sum(size for _, _, size in places) // 2 // CHUNK_BYTES
    options = {"maxblocks": blocks} if cache_type == "blockcache" else {}
    opened: dict[str, Any] = {}
    delivered = 0
    for sample in order:
        name, offset, size = places[sample]
        if name not in opened:
            opened[name] = files.open(
                f"bucket/{name}",
                block_size=CHUNK_BYTES,
                cache_type=cache_type,
                cache_options=options,
            )
        opened[name].seek(offset)
        delivered += len(opened[name].read(size))
    return delivered


def _webdataset(files: Any, names: list[str]) -> int:
    """webdataset's own expander and grouping over streams that fsspec opens, read ahead."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    def streams() -> Iterator[dict[str, Any]]:
        for name in names:
            with files.open(f"bucket/{name}", block_size=CHUNK_BYTES) as stream:
                yield {"url": f"s3://bucket/{name}", "stream": stream}

    return sum(
        sum(len(value) for value in sample.values() if isinstance(value, bytes))
        for sample in group_by_keys(tar_file_expander(streams()))
    )


def _moved(work: Callable[[], int], counts: Counter[str], files: Any) -> float:
    """Runs a side and adds what it moved to `counts`; returns MB delivered."""
    files.counts.clear()
    before = transfer_report()
    delivered = work()
    after = transfer_report()
    ours = {name: int(after[name] - before[name]) for name in before}
    counts.update(files.counts)
    counts["delivered"] += delivered
    counts["requests"] += ours["requests"] + ours["opens"]
    counts["fetched"] += ours["bytes_fetched"]
    counts["hits"] += ours["cache_hits"]
    counts["looks"] += ours["chunk_reads"]
    counts["evictions"] += ours["evictions"]
    return delivered / 1e6


# ---------------------------------------------------------------- the bucket


def _write_corpus(out_dir: Path) -> None:
    draws = random.Random(0)
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (256).to_bytes(4, "big") * 2
    with ShardWriter(out_dir, samples_per_shard=SAMPLES_PER_SHARD) as writer:
        for number in range(NUM_SAMPLES):
            size = min(int(draws.lognormvariate(0, 0.5) * PICTURE_BYTES), 10 * PICTURE_BYTES)
            picture = ImageSegment(png + draws.randbytes(size))
            writer.write(Document(f"{number:06d}", (picture, TextSegment(f"caption {number}"))))


def _places(corpus_dir: Path) -> list[Place]:
    """Where each sample lies: what every side that seeks is told."""
    places = []
    for name in list_shards(corpus_dir):
        for sample in read_samples(open_shard(corpus_dir, name)):
            start = min(offset for offset, _ in sample.places.values())
            stop = max(offset + size for offset, size in sample.places.values())
            places.append((name, start, stop - start))
    return places


def _counting_s3(url: str) -> Any:
    """An s3fs that counts its requests for objects and the bytes they bring."""
    import s3fs

    class CountingS3(s3fs.S3FileSystem):
        counts: ClassVar[Counter[str]] = Counter()

        async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
            answer = await super()._call_s3(method, *arguments, **options)
            if method in ("get_object", "head_object"):
                self.counts["requests"] += 1
            if method == "get_object":
                self.counts["fetched"] += answer["ContentLength"]
            return answer

    return CountingS3(endpoint_url=url, **CREDENTIALS, skip_instance_cache=True)


@contextmanager
def _s3_server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)

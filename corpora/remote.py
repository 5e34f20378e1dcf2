"""Shards read over a network: whole chunks are fetched, kept in a shared cache, and cut to size."""

import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache as cached
from itertools import groupby, islice, pairwise
from pathlib import Path

from braceexpand import braceexpand

from corpora.chunk_cache import ChunkCache
from corpora.storage import split_braces
from corpora.transfer import RemoteSettings, count
from corpora.transport import fetch_range, list_folder, stat_object
from mllm.errors import UserError

MAX_SHARDS = 1_000_000


def list_remote_shards(corpus_url: str, settings: RemoteSettings | None = None) -> list[str]:
    """Names of the .tar objects right under a URL, sorted. UserError when there are none.

    Names with braces at the end of the URL are spelled out and not looked for; http(s) servers
    have no common way to list a folder, so there they are needed.
    """
    folder, pattern = split_braces(corpus_url)
    if "{" in folder:
        raise UserError(f"{corpus_url}: braces belong to the names of shards, not to folders")
    if pattern:
        try:
            names = sorted(set(islice(braceexpand(pattern), MAX_SHARDS + 1)))
        except ValueError:
            raise UserError(f"{corpus_url}: a brace is missing") from None
        if len(names) > MAX_SHARDS:
            raise UserError(f"{corpus_url}: spells more than {MAX_SHARDS:,} names")
    elif corpus_url.startswith(("http://", "https://")):
        raise UserError(
            f"{corpus_url}: such servers cannot list shards; end the URL in their names with "
            "braces, as in /shard-{000000..000099}.tar"
        )
    else:
        names = sorted(list_folder(folder, settings or RemoteSettings.from_environment()))
    names = [name for name in names if name.endswith(".tar")]
    if not names:
        raise UserError(f"{corpus_url}: holds no .tar shard; give the folder that holds them")
    return names


class RemoteShard:
    """An open remote shard, pinned to the version that was found when it was opened.

    Holds no connection, so that it may be kept over a fork and used by any thread.
    """

    def __init__(self, url: str, settings: RemoteSettings | None = None) -> None:
        """Asks for size and version.

        Raises:
            UserError: there is no such object, or it may not be read.
            RemoteUnavailable: an OSError, after all attempts.
        """
        self.url = url
        self.settings = settings or RemoteSettings.from_environment()
        self.size, self._version = stat_object(url, self.settings)
        self.stamp = zlib.crc32(self._version.encode())
        identity = f"{url}\n{self.size}\n{self._version}\n{self.settings.chunk_bytes}"
        # A hash, since the cache outlives the run and its file names should tell nobody anything.
        # An object without any version is never found again: it may have been replaced.
        if not self._version:
            identity += f"\n{os.urandom(16).hex()}"
        self._identity = hashlib.sha256(identity.encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        return f"RemoteShard({self.url!r})"

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`; see `corpora.storage.ShardFile`."""
        stop = offset + size
        if stop > self.size:
            raise UserError(
                f"{self.url}: ends before byte {stop:,}, which the index names; "
                "the shard was replaced after indexing: run `mllm corpora index`"
            )
        count(bytes_asked=size)
        step = self.settings.chunk_bytes
        window = max(1, self.settings.max_request_bytes // step) * step
        cuts = [offset, *range((offset // step) * step + window, stop, window), stop]
        spans = [(start, end) for start, end in pairwise(cuts) if start < end]
        if len(spans) <= 1:
            return b"".join(self._read_span(start, end) for start, end in spans)
        with ThreadPoolExecutor(min(len(spans), self.settings.max_requests)) as pool:
            return b"".join(pool.map(self._read_span, *zip(*spans, strict=True)))

    def expect(self, offset: int, size: int) -> None:
        """Nothing to do: a chunk brings what follows."""

    def _read_span(self, offset: int, stop: int) -> bytes:
        """Bytes of neighbouring chunks, at most `max_request_bytes` of them."""
        settings, step = self.settings, self.settings.chunk_bytes
        cache = _cache(
            os.getpid(), settings.cache_dir, settings.cache_bytes, settings.claim_seconds
        )
        numbers = range(offset // step, (stop - 1) // step + 1)
        blocks = {n: self._cached(cache, n, offset, stop) for n in numbers}
        missing = [n for n in numbers if blocks[n] is None]
        if missing:
            with cache.claimed([self._name(n) for n in missing]):
                # What another process fetched while this one waited is there now.
                blocks |= {n: self._cached(cache, n, offset, stop) for n in missing}
                missing = [n for n in missing if blocks[n] is None]
                blocks |= self._fetched(cache, missing, offset, stop)
        count(chunk_reads=len(numbers), cache_hits=len(numbers) - len(missing))
        return b"".join(blocks[n] or b"" for n in numbers)

    def _cached(self, cache: ChunkCache, n: int, offset: int, stop: int) -> bytes | None:
        start, end = self._bounds(n)
        inside = max(offset, start) - start, min(stop, end) - start
        return cache.read(self._name(n), end - start, *inside)

    def _fetched(
        self, cache: ChunkCache, missing: list[int], offset: int, stop: int
    ) -> dict[int, bytes]:
        """Fetches chunks, each run of neighbours in one request, and stores them whole."""
        blocks = {}
        for _, run in groupby(enumerate(missing), lambda pair: pair[1] - pair[0]):
            numbers = [n for _, n in run]
            first, last = self._bounds(numbers[0])[0], self._bounds(numbers[-1])[1]
            data = fetch_range(self.url, first, last, self._version, self.settings)
            for n in numbers:
                start, end = self._bounds(n)
                cache.store(self._name(n), data[start - first : end - first])
                blocks[n] = data[max(offset, start) - first : min(stop, end) - first]
        return blocks

    def _bounds(self, n: int) -> tuple[int, int]:
        start = n * self.settings.chunk_bytes
        return start, min(start + self.settings.chunk_bytes, self.size)

    def _name(self, n: int) -> str:
        return f"{self._identity}-{n:06d}"


@cached
def _cache(process_id: int, folder: Path, limit_bytes: int, claim_seconds: float) -> ChunkCache:
    """The cache object of this process: a forked worker makes its own."""
    return ChunkCache(folder, limit_bytes, claim_seconds)

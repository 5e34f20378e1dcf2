"""Takedown lists: samples that are left out without rewriting a shard.

    key NAME      a sample's key; a line of one word is a key too
    url URL       the `url` of a sample's JSON
    hash HEX      a sample's content hash, as the index has it

One entry a line; empty lines and lines that begin with # are passed over. Listed samples keep their
place in the order, so nothing else moves, but they are never read and nothing of them is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from corpora.reader import Corpus
from corpora.sidecar import url_hash
from mllm.errors import UserError
from mllm.files import fingerprint, write_aside

KINDS = ("key", "url", "hash")


@dataclass(frozen=True)
class Takedowns:
    """The entries of all lists of a run."""

    keys: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()  # 32 hex, lower case

    @cached_property
    def hash(self) -> str:
        """16 hex over the entries, whatever their order and files."""
        return fingerprint([sorted(self.keys), sorted(self.urls), sorted(self.hashes)])

    def __bool__(self) -> bool:
        return bool(self.keys or self.urls or self.hashes)

    def samples(self, corpus: Corpus) -> np.ndarray:
        """int64, ascending: the samples of a corpus that are listed.

        The scan of the index (8 bytes a sample) is done once for these lists: its result lies
        beside the index, where that can be written.
        """
        if not self:
            return np.zeros(0, dtype=np.int64)
        path = corpus.index_dir / f"excluded-{self.hash}-{corpus.fingerprint}.npy"
        try:
            return np.load(path)
        except (OSError, ValueError):
            pass
        found = corpus.find(keys=self.keys, urls=self.urls, hashes=self.hashes)
        try:
            with write_aside(path, "wb") as file:
                np.save(file, found)
        except OSError:
            pass  # a read-only index: the scan is repeated at the next start
        return found

    def unmatched(self, corpora: Sequence[tuple[Corpus, np.ndarray]]) -> list[str]:
        """Entries of which no corpus has a sample; `corpora` with their `samples`."""
        keys, hashes, url_hashes = set(self.keys), set(self.hashes), set()
        for corpus, samples in corpora:
            for sample in samples.tolist():
                keys.discard(corpus.key(sample))
                hashes.discard(corpus.content_hashes[sample].tobytes().hex())
                url_hashes.add(corpus.url_hash(sample))
        urls = [url for url in self.urls if url_hash(url) not in url_hashes]
        return (
            [f"key {key}" for key in sorted(keys)]
            + [f"url {url}" for url in sorted(urls)]
            + [f"hash {value}" for value in sorted(hashes)]
        )


def read_takedowns(paths: Sequence[str | Path]) -> Takedowns:
    """All entries of the lists. UserError names the file and line of what is none."""
    entries: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for path in paths:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UserError(f"data.exclude: cannot read {path}: {reason}") from None
        for number, line in enumerate(lines, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            kind, _, value = line.partition(" ")
            if not value:
                kind, value = "key", line
            value = value.strip()
            if kind == "hash":
                value = value.lower()
            is_hash = len(value) == 32 and not set(value) - set("0123456789abcdef")
            if kind not in KINDS or (kind == "hash" and not is_hash):
                raise UserError(
                    f"{path}:{number}: {line[:60]!r} is no entry; write `key NAME`, `url URL` or "
                    "`hash HEX` (32 hexadecimal digits)"
                )
            entries[kind].add(value)
    return Takedowns(*(frozenset(entries[kind]) for kind in KINDS))

"""Shards read over a network through fsspec."""

import fsspec

from corpora.storage import split_braces
from mllm.errors import UserError


def list_remote_shards(corpus_url: str) -> list[str]:
    """Names of the .tar objects right under a URL, sorted. UserError when there are none."""
    folder, _ = split_braces(corpus_url)
    scheme, _, path = folder.partition("://")
    found = fsspec.filesystem(scheme).ls(path, detail=False)
    names = sorted(name.rpartition("/")[2] for name in found if name.endswith(".tar"))
    if not names:
        raise UserError(f"{corpus_url}: holds no .tar shard; give the folder that holds them")
    return names


class RemoteShard:
    """A remote shard, read by ranges."""

    def __init__(self, url: str) -> None:
        self.url = url
        scheme, _, self._path = url.partition("://")
        self._files = fsspec.filesystem(scheme)
        self.size: int = self._files.info(self._path)["size"]

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.size:
            raise UserError(
                f"{self.url}: ends before byte {offset + size:,}, which the index names; "
                "the shard was replaced after indexing: index it again"
            )
        return self._files.cat_file(self._path, start=offset, end=offset + size)

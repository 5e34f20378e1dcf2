"""Which queries a cell asks: a fixed sample by a hash of the id, nested in n."""

import hashlib
from collections.abc import Iterable


def by_hash(ids: Iterable[str]) -> list[str]:
    """Ids in the order of their SHA-256: the same everywhere, unlike anything on disk."""
    return sorted(ids, key=lambda id_: hashlib.sha256(id_.encode()).digest())


def select(ids: Iterable[str], limit: int | None) -> list[str]:
    """At most `limit` ids (None for all), sorted; a smaller limit takes a subset of a larger."""
    return sorted(by_hash(ids)[:limit])

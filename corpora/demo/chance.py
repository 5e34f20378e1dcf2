"""Choices by hash: the same for ever, on every machine, whatever else is in the corpus."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def number(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def share(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return number(*parts) / 2**64


def in_final_half(name: str) -> bool:
    """Whether a concept is only reported on, never tuned on."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) // 10 % 2 == 1


def pick(items: Sequence[Item], *parts: str) -> Item:
    """One of the items."""
    return items[number(*parts) % len(items)]


def shuffled(items: Iterable[Item], *parts: str, key: Callable[[Item], Any] = str) -> list[Item]:
    """The items in an order by hash; `key` names an item."""
    return sorted(items, key=lambda item: number(*parts, str(key(item))))

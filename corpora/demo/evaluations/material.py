"""What the builder hands to the modules of this folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from corpora.demo.chance import shuffled
from corpora.demo.concepts import Concept, Names
from corpora.demo.naming import NamingSets
from corpora.demo.packages import Wheels
from corpora.document import Document

Item = TypeVar("Item")
Sets = dict[str, list[Document]]  # name of the folder under `eval/` to its queries


@dataclass(frozen=True)
class Material:
    """What the evaluation sets are made of.

    Args:
        pictures: (vendor, concept id) to PNG, all vendors.
        training_pictures: concept id to (vendor, PNG): what training shows.
        trained: the concepts of the training pictures, flags included.
        flag_descriptions: concept id to what the flag looks like.
        training_words: every word of every training text, in lower case.
        limit: queries a set at most (`--small`); None is each set's own number.
    """

    wheels: Wheels
    pictures: dict[tuple[str, str], bytes]
    training_pictures: dict[str, list[tuple[str, bytes]]]
    trained: list[Concept]
    naming: NamingSets
    held_out: Names
    flag_descriptions: dict[str, str]
    training_words: frozenset[str]
    limit: int | None = None

    def count(self, wanted: int) -> int:
        return wanted if self.limit is None else min(wanted, self.limit)

    def choose(
        self, items: Iterable[Item], wanted: int, name: str, key: Callable[[Item], Any] = str
    ) -> list[Item]:
        """At most `wanted` of the items, by hash; fewer in a small corpus."""
        return shuffled(items, "evaluation", name, key=key)[: self.count(wanted)]

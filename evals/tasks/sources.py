"""Evaluation corpora and support sets on disk, by sample key."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from corpora.document import Document
from corpora.reader import Corpus
from evals.api import Exemplar, Support
from mllm.errors import UserError


class MissingSet(UserError):
    """A corpus that lacks an evaluation set, such as one of an older builder: suites go without."""


class Source:
    """An evaluation corpus: one sample a query, found by key.

    Args:
        kind: What `mllm corpora` builds it as.
    """

    def __init__(self, data_dir: Path, name: str, kind: str = "demo") -> None:
        self.dir = data_dir / name
        if not self.dir.is_dir():
            raise MissingSet(
                f"{self.dir}: no such corpus; build it with `mllm corpora {kind} --out {data_dir}` "
                f"or name its parent with --data"
            )
        self.corpus = Corpus(self.dir)

    @cached_property
    def _positions(self) -> dict[str, int]:
        positions = {key: i for i, key in enumerate(self.corpus.keys)}
        if len(positions) != len(self.corpus):
            raise UserError(f"{self.dir}: {len(self.corpus) - len(positions)} doubled sample keys")
        return positions

    def ids(self) -> list[str]:
        return list(self.corpus.keys)

    def document(self, key: str) -> Document:
        return self.corpus.document(self._positions[key])

    def meta(self, document: Document, *fields: str) -> list:
        """The named fields of a sample's JSON."""
        missing = [field for field in fields if field not in document.meta]
        if missing:
            raise UserError(f"{self.dir}: sample {document.key} has no {missing[0]!r} in its JSON")
        return [document.meta[field] for field in fields]

    def support(self, show: Callable[[Document], Exemplar]) -> Support:
        """Every sample as an exemplar."""

        def read(key: str) -> Exemplar:
            return show(self.document(key))

        return Support(tuple(sorted(self.ids())), self.corpus.fingerprint, read)

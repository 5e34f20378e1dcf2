"""Checks every sample of a corpus, as a long run would meet it."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora.reader import Corpus
from corpora.sidecar import content_hash
from mllm.command import progress
from mllm.errors import BadSample
from mllm.images import open_picture

EXAMPLES = 20  # problems named one by one; the rest is counted


@dataclass
class LintReport:
    """What is wrong, by kind; errors are samples that training would mask."""

    num_samples: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples": self.num_samples,
            "errors": dict(self.errors),
            "warnings": dict(self.warnings),
            "examples": self.examples,
        }


def lint(corpus_dir: Path, index_dir: Path | None = None) -> LintReport:
    """Reads and decodes everything: text, pictures, duplicates, agreement with the index."""
    corpus = Corpus(corpus_dir, index_dir)
    report = LintReport(num_samples=len(corpus))
    keys: set[bytes] = set()
    contents: set[bytes] = set()
    for i in progress(range(len(corpus)), "checking samples"):
        for kind, detail in errors_of(corpus, i):
            report.errors[kind] += 1
            _note(report, corpus, i, f"{kind}: {detail}")
        # Digests, not strings: a corpus of 10^8 samples still fits in memory.
        key = hashlib.blake2b(corpus.key(i).encode(), digest_size=12).digest()
        content = corpus.content_hashes[i].tobytes()
        for kind, value, seen in (
            ("duplicate key", key, keys),
            ("same content", content, contents),
        ):
            if value in seen:
                report.warnings[kind] += 1
                _note(report, corpus, i, kind)
            seen.add(value)
    return report


def errors_of(corpus: Corpus, i: int) -> Iterator[tuple[str, str]]:
    """(kind, detail) for everything that would get sample `i` masked."""
    members = corpus.members(i)
    if content_hash(members) != corpus.content_hashes[i].tobytes():
        yield "index is stale", "the content is not what was indexed; run `mllm corpora index`"
    try:
        document = corpus.document(i)
    except BadSample as error:
        yield "no document", str(error)
        return
    if not document.images and not document.text_bytes:
        yield "empty", "no picture and no text"
    for number, data in enumerate(document.images):
        try:
            open_picture(data)
        except ValueError as error:
            yield "broken picture", f"image {number}: {error}"


def _note(report: LintReport, corpus: Corpus, i: int, problem: str) -> None:
    if len(report.examples) < EXAMPLES:
        report.examples.append(f"{corpus.shard_of(i)} {corpus.key(i)}: {problem}")

"""Checks every sample of a corpus, as a long run would meet it.

The shards are read from front to back, whatever their index says, and described anew in a
temporary folder; what concerns the corpus as a whole is then found in those arrays, in bounded
memory. A broken shard is a finding like others.
"""

import json
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from corpora.checks import Finding, check_sample
from corpora.consolidate import consolidate
from corpora.duplicates import SCAN, duplicates
from corpora.index import default_index_dir
from corpora.ragged import Ragged, load_array
from corpora.sidecar import (
    ShardDescriber,
    ShardSummary,
    open_stamped,
    read_sidecar,
    read_size,
    sidecar_path,
    spell,
    write_sidecar,
)
from corpora.storage import list_shards
from corpora.tar import BrokenTar, read_samples
from corpora.workers import each_shard
from mllm.command import progress
from mllm.errors import UserError
from mllm.files import write_aside

EXAMPLES = 20  # findings named one by one in the report; the rest is counted
PAIRS = 0.9  # a corpus of pairs has at least this share of them


@dataclass
class LintReport:
    """What is wrong, by kind."""

    num_shards: int = 0
    num_samples: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        counts = self.errors if finding.level == "error" else self.warnings
        counts[finding.kind] += 1
        if len(self.examples) < EXAMPLES:
            where = f"{finding.shard} {finding.key}".strip()
            self.examples.append(f"{where}: {finding.kind}: {finding.detail}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "shards": self.num_shards,
            "samples": self.num_samples,
            "errors": dict(self.errors),
            "warnings": dict(self.warnings),
            "examples": self.examples,
        }


def lint(
    corpus_dir: str | Path,
    index_dir: str | Path | None = None,
    workers: int = 1,
    out: Path | None = None,
) -> LintReport:
    """Reads and decodes everything: text, pictures, duplicates, agreement with the index.

    Args:
        corpus_dir: A folder or URL that holds the shards.
        index_dir: Where its index lies.
        workers: Processes over shards.
        out: A JSONL file, one finding a line: level, kind, detail, shard, key.
    """
    index_dir = default_index_dir(corpus_dir, index_dir)
    names = list_shards(corpus_dir)
    report = LintReport(num_shards=len(names))
    with tempfile.TemporaryDirectory(prefix="mllm-lint-") as folder:
        findings = _findings(corpus_dir, index_dir, names, workers, Path(folder), report)
        if out is None:
            for finding in findings:
                report.add(finding)
            return report
        with write_aside(out) as file:
            for finding in findings:
                report.add(finding)
                file.write(json.dumps(asdict(finding)) + "\n")
    return report


def _findings(
    corpus_dir: str | Path,
    index_dir: Path,
    names: list[str],
    workers: int,
    folder: Path,
    report: LintReport,
) -> Iterator[Finding]:
    (folder / "shards").mkdir()
    checked = each_shard(partial(_check_shard, corpus_dir, folder), names, workers)
    shown = progress(
        checked, "checking shards", total=len(names), num_bytes=lambda result: result[0].size
    )
    summaries: list[ShardSummary] = []
    broken: set[str] = set()
    for summary, findings in shown:
        summaries.append(summary)
        for finding in findings:
            yield finding
            if finding.key == "":
                broken.add(finding.shard)
    sidecars = (read_sidecar(sidecar_path(folder, s.name), s) for s in summaries)
    consolidate(sidecars, summaries, folder)
    found = _Arrays(folder)
    report.num_samples = len(found)
    yield from _repeated(found)
    yield from _missing_halves(found)
    yield from _stale(corpus_dir, index_dir, found, broken)


def _check_shard(
    corpus_dir: str | Path, folder: Path, name: str
) -> tuple[ShardSummary, list[Finding]]:
    """Checks a shard's samples and leaves its sidecar in `folder`; of a broken one, what it has."""
    findings = []
    describer = ShardDescriber(name, 0, 0)
    try:
        file, mtime_ns = open_stamped(corpus_dir, name)
        describer = ShardDescriber(name, file.size, mtime_ns)
        for sample in read_samples(file, read_size(corpus_dir)):
            document = spell(sample)
            describer.add(sample, document)
            findings += [
                replace(finding, shard=name, key=sample.key)
                for finding in check_sample(sample, document)
            ]
    except BrokenTar as error:
        findings.append(Finding("error", "broken shard", f"not a whole tar ({error})", name))
    except OSError as error:
        findings.append(Finding("error", "broken shard", f"cannot be read ({error})", name))
    sidecar = describer.sidecar()
    write_sidecar(sidecar, sidecar_path(folder, name))
    return sidecar.summary, findings


class _Arrays:
    """A consolidated index, opened without its shards."""

    def __init__(self, index_dir: Path) -> None:
        index = json.loads((index_dir / "index.json").read_bytes())
        self.name: str = index["arrays"]
        self.shards: list[str] = index["shards"]
        self.numbers = {shard: number for number, shard in enumerate(self.shards)}
        folder = index_dir / self.name
        self.starts: list[int] = load_array(folder, "shard_starts").tolist()
        self.key_hashes = load_array(folder, "key_hashes")
        self.contents = load_array(folder, "content_hashes")
        self.text_bytes = load_array(folder, "text_bytes")
        self.num_images = Ragged.load(folder, "images").counts
        self._members = Ragged.load(folder, "members")
        self._member_blocks = load_array(folder, "member_blocks")
        self._keys, self._key_bytes = Ragged.load(folder, "keys"), load_array(folder, "key_bytes")

    def __len__(self) -> int:
        return len(self.text_bytes)

    def key(self, i: int) -> str:
        start, stop = self._keys.span(i)
        return self._key_bytes[start:stop].tobytes().decode()

    def shard_of(self, i: int) -> str:
        return self.shards[bisect_right(self.starts, i) - 1]

    def finding(self, i: int, kind: str, detail: str) -> Finding:
        return Finding("warning", kind, detail, self.shard_of(i), self.key(i))

    def samples_of(self, shard: str) -> range:
        number = self.numbers[shard]
        return range(self.starts[number], self.starts[number + 1])

    def blocks(self, samples: range) -> np.ndarray:
        """Where the members of a run of samples lie."""
        if not samples:
            return np.zeros(0, np.uint32)
        start, stop = self._members.span(samples[0])[0], self._members.span(samples[-1])[1]
        return self._member_blocks[start:stop]


def _repeated(found: _Arrays) -> Iterator[Finding]:
    for first, later in duplicates(found.key_hashes):
        if found.key(first) == found.key(later):
            yield found.finding(later, "duplicate key", f"also in {found.shard_of(first)}")
    for first, later in duplicates(found.contents.view(np.uint64)[:, 0]):
        if found.contents[first].tobytes() == found.contents[later].tobytes():
            detail = f"as {found.key(first)} in {found.shard_of(first)}"
            yield found.finding(later, "same content", detail)


def _missing_halves(found: _Arrays) -> Iterator[Finding]:
    """Pictures without text and texts without picture, where nearly all else are pairs."""
    parts = [slice(start, start + SCAN) for start in range(0, len(found), SCAN)]
    pairs = halves = others = 0
    for part in parts:
        images, has_text = found.num_images[part], found.text_bytes[part] > 0
        pairs += int(((images == 1) & has_text).sum())
        halves += int(_is_half(images, has_text).sum())
        others += int((images > 1).sum())
    if pairs < PAIRS * (pairs + halves + others):
        return
    for part in parts:
        images, has_text = found.num_images[part], found.text_bytes[part] > 0
        for place in np.flatnonzero(_is_half(images, has_text)).tolist():
            detail = "a text without a picture" if has_text[place] else "a picture without a text"
            yield found.finding(part.start + place, "missing pair", f"{detail}, among pairs")


def _is_half(images: np.ndarray, has_text: np.ndarray) -> np.ndarray:
    return ((images == 1) & ~has_text) | ((images == 0) & has_text)


def _stale(
    corpus_dir: str | Path, index_dir: Path, found: _Arrays, broken: set[str]
) -> Iterator[Finding]:
    """Where the index that readers use says other than the shards do."""
    mend = f"run `mllm corpora index {corpus_dir}`"
    try:
        indexed = _Arrays(index_dir)
    except FileNotFoundError:
        yield Finding("warning", "no index", f"{index_dir} holds none; {mend}")
        return
    except (ValueError, KeyError, UserError):
        yield Finding("error", "index is stale", f"{index_dir}: cannot be read; {mend}")
        return
    if (indexed.name, indexed.shards) == (found.name, found.shards):
        return
    for shard in sorted(found.numbers.keys() | indexed.numbers.keys()):
        if shard not in found.numbers:
            yield Finding("error", "index is stale", f"the shard is missing; {mend}", shard)
        elif shard not in indexed.numbers:
            yield Finding("error", "index is stale", f"newer than the index; {mend}", shard)
        elif shard not in broken:
            yield from _stale_samples(found, indexed, shard, mend)


def _stale_samples(found: _Arrays, indexed: _Arrays, shard: str, mend: str) -> Iterator[Finding]:
    here, there = found.samples_of(shard), indexed.samples_of(shard)
    same = len(here) == len(there) and np.array_equal(found.blocks(here), indexed.blocks(there))
    if not same:
        yield Finding("error", "index is stale", f"its samples lie elsewhere; {mend}", shard)
        return
    differ = (
        found.key_hashes[here.start : here.stop] != indexed.key_hashes[there.start : there.stop]
    )
    contents = found.contents[here.start : here.stop] != indexed.contents[there.start : there.stop]
    for place in np.flatnonzero(differ | contents.any(axis=1)).tolist():
        detail = f"the content is not what was indexed; {mend}"
        yield replace(found.finding(here[place], "index is stale", detail), level="error")

"""Checks every sample of a corpus, as a long run would meet it.

The shards are read from front to back, whatever their index says, and described anew in a
temporary folder; what concerns the corpus as a whole is then found in those arrays, in bounded
memory. A broken shard is a finding like others.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from corpora.checks import Finding, check_sample
from corpora.consolidate import consolidate
from corpora.corpus_checks import IndexArrays, missing_halves, repeated, stale
from corpora.index import default_index_dir
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
from corpora.storage import is_remote, list_shards
from corpora.tar import BrokenTar, read_samples
from corpora.workers import each_shard
from mllm.command import progress
from mllm.errors import UserError
from mllm.files import write_aside

EXAMPLES = 5  # findings of a kind that the report names one by one; the rest is counted


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
        if counts[finding.kind] <= EXAMPLES:
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
            if (finding.level, finding.key) == ("error", ""):
                broken.add(finding.shard)
    sidecars = (read_sidecar(sidecar_path(folder, s.name), s) for s in summaries)
    consolidate(sidecars, summaries, folder)
    found = IndexArrays(folder)
    report.num_samples = len(found)
    yield from repeated(found)
    yield from missing_halves(found)
    yield from stale(corpus_dir, index_dir, found, broken)


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
    except (OSError, UserError) as error:
        if is_remote(corpus_dir):
            raise  # a server that is away says nothing of its shards
        findings.append(Finding("error", "unreadable shard", str(error), name))
    sidecar = describer.sidecar()
    if not sidecar.summary.num_samples and not findings:
        detail = "no sample: nothing in it is named KEY.EXTENSION"
        findings.append(Finding("warning", "empty shard", detail, name))
    write_sidecar(sidecar, sidecar_path(folder, name))
    return sidecar.summary, findings

"""What an import will do, decided before anything is read: units, stages, and where they lie.

OUT/shard-UUUUUU-NNN.tar     the corpus
OUT/index/                   made last: without it no reader takes OUT for a corpus
OUT/import-report.json, .html
OUT/import-statistics/       with --statistics: datatrove's, GROUP/STATISTIC/metric.json
OUT/import-logs/             datatrove's, a folder a stage
OUT/import-work/             plan, units, staged records, drops; removed when all is done
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from corpora.pipeline.decontaminate import (
    DecontaminationOptions,
    decontamination_stages,
    decontamination_steps,
)
from corpora.pipeline.dedup import DedupOptions, Stage, dedup_stages, removal_steps
from corpora.pipeline.filters import FilterOptions, filter_steps
from corpora.pipeline.read import ReadSource
from corpora.pipeline.readers import find_format
from corpora.pipeline.readers.base import Format, ReadOptions
from corpora.pipeline.statistics import statistics_stages, statistics_steps
from corpora.pipeline.units import cut, write_units
from corpora.pipeline.write import ReadStaged, WriteShards
from mllm.errors import UserError
from mllm.files import fingerprint, write_json

IMPORT_VERSION = 2  # counts up when equal input gives other shards
MEGABYTE = 1 << 20
REPORT = "import-report.json"


@dataclass(frozen=True)
class ImportOptions:
    """What is imported, and how. All but `min_kept` decide what is written."""

    kind: str
    sources: tuple[Path, ...]
    out: Path
    format: str | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    filters: FilterOptions = field(default_factory=FilterOptions)
    dedup: DedupOptions = field(default_factory=DedupOptions)
    evaluation_files: tuple[Path, ...] = ()
    decontamination: DecontaminationOptions = field(default_factory=DecontaminationOptions)
    samples_per_shard: int = 10_000
    unit_megabytes: int = 256
    min_kept: float = 0.5
    rewrite: bool = False
    statistics: bool = False

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1 or self.unit_megabytes < 1:
            raise UserError("--samples-per-shard and --unit-megabytes: give 1 or more")
        if not 0 <= self.min_kept <= 1:
            raise UserError(f"--min-kept {self.min_kept}: give a share from 0 to 1")

    def settings(self) -> dict[str, Any]:
        """All that decides what is written, in JSON."""
        settings = asdict(self)
        del settings["min_kept"], settings["out"]
        for name in ("sources", "evaluation_files"):
            settings[name] = [str(path.resolve()) for path in settings[name]]
        return settings | {"version": IMPORT_VERSION}

    @property
    def is_plain(self) -> bool:
        """Whether every record that can be read is kept as it is."""
        is_off = self.filters == FilterOptions() and self.dedup.is_off
        return is_off and not self.evaluation_files and not self.statistics


@dataclass(frozen=True)
class Places:
    """The folders of an import's work."""

    out: Path

    @property
    def work(self) -> Path:
        return self.out / "import-work"

    @property
    def logs(self) -> Path:
        return self.out / "import-logs"

    @property
    def units(self) -> Path:
        return self.work / "units.jsonl"

    @property
    def drops(self) -> Path:
        return self.work / "drops"

    @property
    def staged(self) -> Path:
        return self.work / "staged"

    @property
    def statistics(self) -> Path:
        return self.work / "statistics"

    def stage(self, name: str) -> Path:
        return self.work / "stages" / name


@dataclass(frozen=True)
class Plan:
    """The stages of an import in order. `unit_bytes` is (U,), the weight of each unit."""

    options: ImportOptions
    format_name: str
    unit_bytes: list[int]
    stages: list[Stage]
    steps: list[str]  # names of the steps that drop, in order, for the report
    settings_id: str  # 16 hex over settings and units

    @property
    def places(self) -> Places:
        return Places(self.options.out)

    def write(self) -> None:
        """Notes the plan in `import-work`, so that a second start goes on with it."""
        for stage in self.stages:
            for folder in ("done", "failed", "counters"):
                (self.places.stage(stage.name) / folder).mkdir(parents=True, exist_ok=True)
            for path in (self.places.stage(stage.name) / "failed").iterdir():
                path.unlink()
        self.places.staged.mkdir(exist_ok=True)
        known = {"settings_id": self.settings_id, "settings": self.options.settings()}
        write_json(self.places.work / "plan.json", known)


def formats_of(options: ImportOptions) -> Format:
    """The one format of all sources. UserError when they differ or are of none."""
    if not options.sources:
        raise UserError("give one SOURCE or more")
    formats = [
        find_format(options.kind, source, options.format, options.read)
        for source in options.sources
    ]
    for source, found in zip(options.sources, formats, strict=True):
        if found.name != formats[0].name:
            raise UserError(
                f"{source}: is {found.name}, but {options.sources[0]} is {formats[0].name}; "
                "import them one by one"
            )
    return formats[0]


def make_plan(options: ImportOptions, source_format: Format) -> Plan:
    """Cuts the input and lays out the stages. Opens or continues OUT/import-work.

    Raises:
        UserError: Nothing to import; OUT holds something else.
    """
    places = Places(options.out)
    unit_bytes = max(options.unit_megabytes * MEGABYTE // source_format.weight, 1)
    parts = chain.from_iterable(source_format.parts(s, unit_bytes) for s in options.sources)
    units = cut(parts, unit_bytes)
    if not units:
        raise UserError(f"{options.sources[0]}: no file of format {source_format.name} there")
    described = [[asdict(part) for part in unit] for unit in units]
    settings_id = fingerprint([options.settings(), source_format.name, described])
    _check_out(places, settings_id)
    write_units(places.units, units)
    stages = list(_stages(options, source_format, places, len(units)))
    steps = [step.name for stage in stages for step in stage.steps]
    sizes = [sum(part.size for part in unit) for unit in units]
    return Plan(options, source_format.name, sizes, stages, steps, settings_id)


def finished_report(options: ImportOptions, settings_id: str) -> dict[str, Any] | None:
    """The report of an import that stands whole with the same settings, or None."""
    try:
        report = json.loads((options.out / REPORT).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    is_same = report.get("settings_id") == settings_id
    return report if is_same and report.get("fingerprint") else None


def _check_out(places: Places, settings_id: str) -> None:
    """OUT is new, or holds an unfinished or finished import with the same settings."""
    if places.out.exists() and not places.out.is_dir():
        raise UserError(f"{places.out}: not a folder; give a new one with --out")
    places.out.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads((places.work / "plan.json").read_bytes())["settings_id"]
    except FileNotFoundError:
        known = None
        if (places.out / REPORT).exists():
            known = json.loads((places.out / REPORT).read_bytes()).get("settings_id")
        elif any(places.out.glob("*.tar")) or (places.out / "index").exists():
            raise UserError(f"{places.out}: holds a corpus already; give a new folder") from None
    if known not in (None, settings_id):
        raise UserError(
            f"{places.out}: holds an import of other sources or options; give a new folder with "
            "--out, or remove that one"
        )
    if not places.work.exists():
        shutil.rmtree(places.logs, ignore_errors=True)
    places.work.mkdir(exist_ok=True)


def _stages(
    options: ImportOptions, source_format: Format, places: Places, num_units: int
) -> Iterator[Stage]:
    drops = places.drops
    reader = ReadSource(source_format, places.units, drops, places.stage("read") / "counters")
    filters = filter_steps(options.filters, drops)
    if options.evaluation_files:
        yield from decontamination_stages(
            options.evaluation_files, places.work, options.decontamination
        )
        filters += decontamination_steps(places.work, drops, options.decontamination)
    writer = WriteShards(options.out, options.samples_per_shard)
    measured = statistics_steps(places.statistics) if options.statistics else []
    if options.dedup.is_off:
        yield Stage("read", [reader, *filters, *measured, writer], None)
    else:
        yield from _dedup_stages(
            options, places, [reader, *filters], [*measured, writer], num_units
        )
    if options.statistics:
        yield from statistics_stages(places.statistics, options.out / "import-statistics")


def _dedup_stages(
    options: ImportOptions,
    places: Places,
    before: list[PipelineStep],
    after: list[PipelineStep],
    num_units: int,
) -> Iterator[Stage]:
    work = places.work / "duplicates"
    stager = WriteShards(places.staged, None, "staged")
    yield Stage("read", [*before, stager], None)
    staged = ReadStaged(places.staged, places.stage("fingerprints") / "counters")
    yield from dedup_stages(options.dedup, staged, work, num_units)
    removal = removal_steps(options.dedup, work, places.drops)
    staged = ReadStaged(places.staged, places.stage("write") / "counters")
    yield Stage("write", [staged, *removal, *after], None)

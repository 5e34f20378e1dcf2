"""The import report: what was read, kept and dropped by step and reason, with examples.

OUT/import-report.json and OUT/import-report.html, the same figures for scripts and for people.
"""

import importlib.metadata
import platform
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.pipeline.decontaminate import evaluation_read
from corpora.pipeline.judge import EXAMPLES_PER_REASON, read_drops
from corpora.pipeline.readers.tars import read_downloads
from corpora.pipeline.report_page import page
from corpora.pipeline.task import done_ranks
from mllm.command import printable
from mllm.errors import UserError
from mllm.files import write_aside, write_json

if TYPE_CHECKING:
    from corpora.pipeline.plan import ImportOptions, Plan

REASONS_NAMED = 3  # in the message of a failed floor
PACKAGES = ("mllm", "datatrove", "webdataset", "pyarrow", "pillow")


def import_report(plan: "Plan", seconds: float) -> dict[str, Any]:
    """The report of an import whose stages are done; no fingerprint, as it has no index yet."""
    options, places = plan.options, plan.places
    steps = [_step(places.drops, name) for name in _order(places.drops, plan.steps)]
    read = next(step for step in steps if step["name"] == "read")
    writers = done_ranks(places.stage("write" if not options.dedup.is_off else "read"))
    kept = sum(unit["records"] for unit in writers)
    total = read["kept"] + sum(read["dropped"].values())
    shards = list(options.out.glob("*.tar"))
    return _head(options, plan.format_name) | {
        "settings_id": plan.settings_id,
        "read": total,
        "kept_samples": kept,
        "kept_share": round(kept / total, 6) if total else 0.0,
        "dropped": total - kept,
        "broken_files": read["broken_files"],
        "steps": steps,
        "evaluation_files": evaluation_read(places.work) if options.evaluation_files else [],
        "images": sum(unit["images"] for unit in writers),
        "text_bytes": sum(unit["text_bytes"] for unit in writers),
        "input_bytes": sum(plan.unit_bytes),
        "units": len(plan.unit_bytes),
        "shards": len(shards),
        "shard_bytes": sum(path.stat().st_size for path in shards),
        "seconds": round(seconds, 1),
        "stage_seconds": {
            stage.name: round(sum(r["seconds"] for r in done_ranks(places.stage(stage.name))), 1)
            for stage in plan.stages
        },
    }


def downloads_report(options: "ImportOptions", source: Path) -> dict[str, Any]:
    """The report of a folder of tars that is indexed in place, from img2dataset's statistics."""
    report = _head(options, "img2dataset") | {"in_place": str(source), "steps": []}
    shards = list(source.glob("*.tar"))
    report |= {"shards": len(shards), "shard_bytes": sum(p.stat().st_size for p in shards)}
    downloads = read_downloads(source)
    if downloads is None:
        return report
    failed = {why: n for why, n in downloads.statuses.items() if why != "success"}
    step = {"name": "download", "kept": downloads.succeeded, "dropped": failed}
    return report | {
        "read": downloads.asked,
        "dropped": downloads.asked - downloads.succeeded,
        "kept_share": round(downloads.succeeded / max(downloads.asked, 1), 6),
        "download_seconds": round(downloads.seconds, 1),
        "steps": [step | {"edited": {}, "examples": {}}],
    }


def check_floor(report: dict[str, Any], min_kept: float, out: Path) -> None:
    """UserError, naming the main reasons, when too little was kept. A share unknown passes."""
    share = report.get("kept_share")
    if share is None or (share >= min_kept and report.get("kept_samples") != 0):
        return
    reasons: Counter[str] = Counter()
    for step in report["steps"]:
        reasons.update({f"{step['name']}: {why}": n for why, n in step["dropped"].items()})
    named = ", ".join(f"{why} ({n:,})" for why, n in reasons.most_common(REASONS_NAMED))
    kept = f"{share:.1%} of {report['read']:,} records, under --min-kept {min_kept:.0%}"
    if report.get("kept_samples") == 0:
        kept = f"none of {report['read']:,} records"
    raise UserError(
        f"{out}: kept {kept}; main reasons: {named or 'the input is empty'}; "
        f"see {out / 'import-report.html'}; no index was made"
    )


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Both files."""
    write_json(out / "import-report.json", report)
    with write_aside(out / "import-report.html") as file:
        file.write(page(report))


def summary(report: dict[str, Any]) -> list[str]:
    """The lines that the command prints."""
    share = report.get("kept_share")
    kept = report.get("kept_samples", 0)
    lines = [f"{report['out']}: {kept:,} samples, fingerprint {report['fingerprint']}"]
    if share is not None:
        lines.append(f"  kept {share:.1%} of {report['read']:,} records read")
    for step in report["steps"]:
        for reason, count in sorted(step["dropped"].items(), key=lambda item: -item[1])[:5]:
            lines.append(f"  dropped by {step['name']}: {reason}: {count:,}")
        for what, count in step["edited"].items():
            lines.append(f"  edited by {step['name']}: {what}: {count:,}")
    for path in report.get("broken_files", [])[:5]:
        lines.append(f"  breaks off, only its beginning was read: {path}")
    for read in report.get("evaluation_files", []):
        if short := read["short_texts"]:
            lines.append(
                f"  {read['path']}: {short:,} of {read['texts']:,} texts have too few words to be "
                "searched for (--decontaminate-ngram)"
            )
    if "in_place" in report:
        lines.append(f"  shards stay in {report['in_place']}; name the index by index_dir")
    lines.append(f"  report: {Path(report['out']) / 'import-report.html'}")
    return [printable(line) for line in lines]


def _head(options: "ImportOptions", format_name: str) -> dict[str, Any]:
    return {
        "kind": options.kind,
        "format": format_name,
        "sources": [str(source) for source in options.sources],
        "out": str(options.out),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "options": {
            "read": asdict(options.read),
            "filters": asdict(options.filters),
            "dedup": asdict(options.dedup),
            "evaluation_files": [str(path) for path in options.evaluation_files],
            "decontamination": asdict(options.decontamination),
            "samples_per_shard": options.samples_per_shard,
            "unit_megabytes": options.unit_megabytes,
            "min_kept": options.min_kept,
        },
    }


def _order(drops_dir: Path, steps: list[str]) -> list[str]:
    """Names of the steps that left drops, as they ran; others after them."""
    found = {path.name for path in drops_dir.iterdir() if path.is_dir()}
    known = [name for name in dict.fromkeys(steps) if name in found]
    return [*known, *sorted(found - set(known))]


def _step(drops_dir: Path, name: str) -> dict[str, Any]:
    """All units' drops of a step together; of examples the first few in input order."""
    kept, dropped, edited = 0, Counter[str](), Counter[str]()
    examples: dict[str, list[dict[str, Any]]] = {}
    broken: list[str] = []
    for path in sorted((drops_dir / name).glob("*.json")):
        drops = read_drops(path)
        kept += drops["kept"]
        dropped.update(drops["dropped"])
        edited.update(drops["edited"])
        broken += drops.get("broken_files", [])
        for reason, shown in drops["examples"].items():
            together = examples.setdefault(reason, [])
            together += shown[: EXAMPLES_PER_REASON - len(together)]
    step = {
        "name": name,
        "kept": kept,
        "dropped": dict(dropped.most_common()),
        "edited": dict(edited.most_common()),
        "examples": examples,
    }
    return step | {"broken_files": sorted(set(broken))} if name == "read" else step

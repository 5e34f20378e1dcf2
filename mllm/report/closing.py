"""The end of the page: times, limits, settings and fingerprints."""

from collections.abc import Iterable
from typing import Any

from mllm.report.inputs import Run, Times
from mllm.report.markup import Markup, duration, h, join, share_bar, table, words
from mllm.report.verdict import Cell, shots_label


def times_section(times: Times) -> Markup:
    total = sum(seconds for _, seconds in times.steps)
    rows = [
        [step, duration(seconds), share_bar(seconds / total if total else 0.0)]
        for step, seconds in times.steps
    ]
    rows.append([h("strong", "Whole"), h("strong", duration(total)), ""])
    names = {"probe_bf16_gflops": "bf16", "probe_fp32_gflops": "fp32"}
    probes = ", ".join(
        f"{names.get(name, name)} {value:,.0f} GFLOP/s" for name, value in times.probes.items()
    )
    return join(
        [
            table(["Step", "Wall time", "Share"], rows, numeric=(1,)),
            h("p", f"Matrix products on this machine when it ran: {probes}.", class_="note")
            if probes
            else None,
        ]
    )


GENERAL_LIMITS = (
    "A model of this size has no world knowledge to speak of. Text that reads well can be wrong.",
    "Nothing here was checked for safety or bias; it is not meant for use on people.",
)
DEMO_LIMITS = (
    "The pictures are emoji, flags and drawn shapes: expect nothing on photographs.",
    "Captions are made from names, keywords and groups, so a caption score rewards the right name "
    "and the right pattern. Nothing here compares with published COCO or VQAv2 figures.",
)


def limits_section(
    cells: list[Cell], runs: list[Run], corpus_report: dict[str, Any] | None
) -> Markup:
    """Only what holds for these scores, runs and this corpus."""
    suites = {cell["suite"] for cell in cells}
    lines = [*(DEMO_LIMITS if suites & {"naming", "caption", "easy_vqa"} else ())]
    if suites & {"naming", "caption"}:
        unseen = "“Unseen artwork” means a known concept drawn by an artist who was held out whole."
        if any(cell.get("split") == "new_concepts" for cell in cells):
            unseen += " The harder test, concepts never seen at all, is a row of its own."
        lines.append(unseen)
    if "naming" in suites:
        lines.append("Naming is a choice among five names, not free naming among all of them.")
    if "easy_vqa" in suites:
        lines.append(
            "Even a perfect model shown the wrong picture gets about 58 % on easy-vqa, and the "
            "best answer from the question alone 67 %: only what is above that was seen."
        )
    if "builder_version" in ((corpus_report or {}).get("settings") or {}):  # `mllm corpora demo`
        lines.append(
            "The demo's own settings in this repository were chosen on the development half."
        )
    stages = ["vision" if run.is_vision else run.setting("stage") for run in runs]
    once = "One training run, one seed: another" if len(set(stages)) == len(stages) else "Another"
    lines.append(
        f"{once} run differs by more than the ± figures, which cover only which pictures were "
        "asked about."
    )
    return h("ul", [h("li", line) for line in (*lines, *GENERAL_LIMITS)])


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value) of nested settings; lists of plain values stay whole."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = enumerate(value)
    else:
        yield prefix, str(value)
        return
    for key, item in items:
        yield from flat(item, f"{prefix}.{key}" if prefix else str(key))


def settings_details(title: str, value: Any) -> Markup:
    rows = [[h("code", key), h("code", text)] for key, text in flat(value)]
    return h("details", h("summary", title), table(["Key", "Value"], rows))


def settings_section(
    runs: list[Run], results: list[tuple[str, dict[str, Any]]], corpus_report: dict[str, Any] | None
) -> Markup:
    """Every setting and fingerprint, folded: enough to tell two pages apart."""
    prints = [[f"stream of {run.label}", (run.stream or {}).get("fingerprint")] for run in runs]
    prints += [["corpus", (corpus_report or {}).get("fingerprint")]]
    prints += [[f"model scored in {name}", r.get("model_fingerprint")] for name, r in results]
    known = [[what, h("code", str(value))] for what, value in prints if value]
    folded = [
        settings_details(f"Settings of {run.label}", run.config) for run in runs if run.config
    ]
    folded += [settings_details(f"Stream of {run.label}", run.stream) for run in runs if run.stream]
    for name, result in results:
        if result.get("versions"):
            folded.append(settings_details(f"Versions used by {name}", result["versions"]))
        asked = {
            f"{c['suite']} {c.get('split') or ''} k={shots_label(c)}": c.get("settings", {})
            for c in result["cells"]
        }
        folded.append(settings_details(f"How {name} asked", asked))
    for key in ("settings", "packages"):
        if corpus_report and key in corpus_report:
            folded.append(settings_details(f"{words(key)} of the corpus", corpus_report[key]))
    return join([table(["Of", "Fingerprint"], known) if known else None, folded])

"""What a run set aside: masked samples, skipped steps, spikes, grouped by reason."""

import re
from collections import defaultdict
from typing import Any

from mllm.report.inputs import Run
from mllm.report.markup import Markup, h, join, table

NUM_REASONS = 20  # shown of a run; the rest is one line
NUM_EXAMPLES = 3  # samples named of each reason
NUMBER = re.compile(r"\d[\d.,]*")

Entry = dict[str, Any]  # one line of ledger.jsonl


def ledger_section(runs: list[Run]) -> Markup | None:
    """A table a run that has ledger lines; None where no run has any."""
    told = [run for run in runs if run.ledger]
    if not told:
        return None
    note = (
        "A masked sample keeps its place, but nothing of it is scored. Reasons that differ only in "
        "numbers are one line. Every case stands in the run's ledger.jsonl."
    )
    return join([h("p", note), [ledger_table(run) for run in told]])


def ledger_table(run: Run) -> Markup:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in run.ledger:
        what = "Masked sample" if "key" in entry else "Step"
        groups[what, NUMBER.sub("0", reason_of(entry))].append(entry)
    largest = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))
    rows = [
        [what, reason_of(entries[0]), f"{len(entries):,}", steps_of(entries), examples(entries)]
        for (what, _), entries in largest[:NUM_REASONS]
    ]
    if rest := largest[NUM_REASONS:]:
        count = sum(len(entries) for _, entries in rest)
        rows.append(["", f"{len(rest)} more reasons", f"{count:,}", "", ""])
    columns = ["What", "Reason", "Count", "Steps", "For example"]
    return join([h("h3", f"Set aside in {run.label}"), table(columns, rows, numeric=(2,))])


def reason_of(entry: Entry) -> str:
    return str(entry.get("reason", "no reason given"))


def steps_of(entries: list[Entry]) -> str:
    """`7`, `7 to 90`, or a dash where no line names a step."""
    steps = [entry["step"] for entry in entries if isinstance(entry.get("step"), int)]
    if not steps:
        return "–"
    first, last = min(steps), max(steps)
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def examples(entries: list[Entry]) -> str:
    """Keys of masked samples, or of the samples of a step."""
    keys = dict.fromkeys(str(entry["key"]) for entry in entries if "key" in entry)
    if not keys:
        samples = entries[0].get("samples")
        keys = dict.fromkeys(map(str, samples)) if isinstance(samples, list) else {}
    shown = ", ".join(list(keys)[:NUM_EXAMPLES])
    return shown + (f" and {len(keys) - NUM_EXAMPLES} more" if len(keys) > NUM_EXAMPLES else "")

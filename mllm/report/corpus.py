"""What it was trained on: the corpus' own report, whatever it counts."""

from typing import Any

from mllm.report.markup import Markup, h, is_number, join, table, words

CORPUS_TITLES = {
    "counts": "Samples by corpus and source",
    "captions": "Captions: length and diversity",
    "dropped": "Left out while building, by reason",
    "concepts": "Concepts by use",
    "packages": "Where it came from",
}
FOLDED = ("fingerprint", "settings")  # shown among the settings


def corpus_section(report: dict[str, Any]) -> Markup:
    """The corpus' own report, whatever it counts: tables of numbers, records, single values."""
    return join(
        describe(CORPUS_TITLES.get(key, words(key)), value)
        for key, value in report.items()
        if key not in FOLDED
    )


def describe(title: str, value: Any) -> Markup:
    """Numbers by name and records become tables; long lists are folded; the rest is a line."""
    heading = h("h3", title)
    if isinstance(value, dict) and value:
        if all(isinstance(item, dict) for item in value.values()):
            return join([heading, group_table(value)])
        numeric = (1,) if all(map(is_number, value.values())) else ()
        rows = [[words(name), short(item)] for name, item in value.items()]
        return join([heading, table(["", "Value"], rows, numeric=numeric)])
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return join([heading, record_table(value)])
    if isinstance(value, list) and len(value) > 12:
        items = h("p", ", ".join(short(item) for item in value))
        return join([heading, h("details", h("summary", f"{len(value):,} entries"), items)])
    return h("p", h("strong", title + ": "), short(value))


def short(value: Any) -> str:
    """A value in a cell: numbers with separators, nested things as `key value` lists."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{words(str(k)).lower()} {short(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(short(item) for item in value) or "–"
    return "–" if value is None else str(value)


def group_table(groups: dict[str, dict[str, Any]]) -> Markup:
    """One line a group: its sum where it counts things, and its parts."""
    rows = []
    for name, parts in groups.items():
        counted = all(isinstance(item, int) for item in parts.values())
        total = f"{sum(parts.values()):,}" if counted else "–"
        rows.append([name, total, ", ".join(f"{k} {short(v)}" for k, v in parts.items())])
    return table(["", "Count", "Of which"], rows, numeric=(1,))


def record_table(records: list[dict[str, Any]]) -> Markup:
    """Records with the same keys; hashes are left to the settings."""
    columns = [key for key in dict.fromkeys(k for r in records for k in r) if key != "sha256"]
    rows = [[short(record.get(key)) for key in columns] for record in records]
    return table([words(key) for key in columns], rows)

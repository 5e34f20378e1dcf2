"""The import report as one HTML page: no script, no font, nothing loaded."""

import json
from html import escape
from typing import Any

from corpora.pipeline.judge import utf8_safe

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; }
.figures b { display: block; font-size: 1.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd;
  vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
.steps { table-layout: fixed; } .steps td.n, .steps th.n { width: 7rem; }
.steps th:last-child { width: 14rem; }
.bar { background: #e8e8e8; height: .6rem; min-width: 6rem; margin-top: .5rem; }
.bar i { display: block; height: 100%; background: #b5532c; }
.kept i { background: #2f7d4f; }
details { margin: .3rem 0; } summary { cursor: pointer; color: #555; }
code, pre { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere;
  white-space: pre-wrap; }
.warn { background: #fff3e8; border-left: 4px solid #b5532c; padding: .5rem 1rem; }
.quiet { color: #666; }
"""


def page(report: dict[str, Any]) -> str:
    """The whole page. Everything from the input is escaped."""
    title = f"Import of {report['kind']} from {report['format']}"
    sources = "<br>".join(escape(source) for source in report["sources"])
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{sources}<br>to {escape(report["out"])}</p>',
        _warning(report),
        _figures(report),
        *[_step(step, report.get("read", 0)) for step in report["steps"]],
        "<h2>How it was made</h2>",
        _made(report),
    ]
    return utf8_safe(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _warning(report: dict[str, Any]) -> str:
    lines = []
    if "fingerprint" not in report:
        lines.append("No index was made: the import is unfinished, or kept too little.")
    for path in report.get("broken_files", []):
        lines.append(f"Breaks off, only its beginning was read: <code>{escape(path)}</code>")
    return f'<p class="warn">{"<br>".join(lines)}</p>' if lines else ""


def _figures(report: dict[str, Any]) -> str:
    shown = [
        ("records read", report.get("read")),
        ("samples kept", report.get("kept_samples")),
        ("kept", None if "kept_share" not in report else f"{report['kept_share']:.1%}"),
        ("pictures", report.get("images")),
        ("of text", _bytes(report.get("text_bytes"))),
        ("of input", _bytes(report.get("input_bytes"))),
        (f"in {report['shards']:,} shards", _bytes(report["shard_bytes"])),
        ("time", None if "seconds" not in report else _time(report["seconds"])),
    ]
    cells = "".join(
        f"<div><b>{value:,}</b>{name}</div>"
        if isinstance(value, int)
        else f"<div><b>{escape(value)}</b>{name}</div>"
        for name, value in shown
        if value is not None
    )
    return f'<div class="figures">{cells}</div>'


def _step(step: dict[str, Any], total: int) -> str:
    """A step's table of reasons; the bar is its share of all records read."""
    rows = [_row("kept", step["kept"], total, [], "kept")]
    for reason, count in step["dropped"].items():
        rows.append(_row(reason, count, total, step["examples"].get(reason, [])))
    edits = [
        _row(f"edited: {what}", count, 0, step["examples"].get(what, []))
        for what, count in step["edited"].items()
    ]
    return (
        f"<h2>{escape(step['name'])}</h2><table class=steps><tr><th>reason<th class=n>records"
        f"<th class=n>share<th></tr>{''.join(rows + edits)}</table>"
    )


def _row(
    reason: str, count: int, total: int, examples: list[dict[str, Any]], kind: str = ""
) -> str:
    share = count / total if total else 0.0
    shown = "".join(_example(example) for example in examples)
    more = f"<details><summary>examples</summary>{shown}</details>" if shown else ""
    bar = f'<div class="bar {kind}"><i style="width:{share:.2%}"></i></div>' if total else ""
    percent = f"{share:.2%}" if total else ""
    return f"<tr><td>{escape(reason)}{more}<td class=n>{count:,}<td class=n>{percent}<td>{bar}</tr>"


def _example(example: dict[str, Any]) -> str:
    rest = {name: value for name, value in example.items() if name not in ("id", "excerpt")}
    more = f" {json.dumps(rest, ensure_ascii=False)}" if rest else ""
    text = f"{example['id']}\n{example['excerpt']}{more}"
    return f"<pre>{escape(text)}</pre>"


def _made(report: dict[str, Any]) -> str:
    facts = {
        "fingerprint of the corpus": report.get("fingerprint", "none"),
        "units": report.get("units"),
        "evaluation files": {e["path"]: e for e in report.get("evaluation_files", [])} or None,
        "seconds by stage, summed over tasks": report.get("stage_seconds"),
        "versions": report["versions"],
        "options": report["options"],
    }
    rows = "".join(
        f"<tr><td>{escape(name)}<td><code>{escape(_plain(value))}</code></tr>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<table>{rows}</table>"


def _plain(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "\n".join(f"{name}: {json.dumps(v, ensure_ascii=False)}" for name, v in value.items())


def _bytes(count: int | None) -> str | None:
    if count is None:
        return None
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min"

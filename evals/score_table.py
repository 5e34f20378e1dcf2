"""What `mllm eval score` prints for people."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_results(results: dict[str, Any]) -> None:
    """Metrics with their standard errors beside the baselines, then groups and settings."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width: nothing may be cut off
        console = Console(width=140, highlight=False)
    console.print(_table(results))
    for name, group in results["groups"].items():
        shown = (f"{key or 'none'} {row['value']:.2f} (n={row['n']})" for key, row in group.items())
        console.print(f"by {name}: {', '.join(shown)}", markup=False)
    for name, metric in results["metrics"].items():
        if "reason" in metric:
            console.print(f"{name} not computed: {metric['reason']}", markup=False)
    settings = (f"{name}: {value}" for name, value in results["settings"].items())
    console.print("; ".join(settings), markup=False)


def _table(results: dict[str, Any]) -> Table:
    table = Table(
        title=f"{results['task']}: [bold]n = {results['n']:,}[/] {results['unit']} "
        "(± one standard error)"
    )
    table.add_column("metric")
    table.add_column("score", justify="right")
    for name in results["baselines"]:
        table.add_column(escape(name), justify="right")
    for name, metric in results["metrics"].items():
        baselines = (row.get(name) for row in results["baselines"].values())
        table.add_row(
            name, _number(metric["value"], metric["se"]), *(_number(value) for value in baselines)
        )
    return table


def _number(value: float | None, se: float | None = None) -> str:
    """Two places, as the official VQA score has."""
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ± {se:.2f}" if se is not None else "")

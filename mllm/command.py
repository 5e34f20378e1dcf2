"""What every `mllm` verb shares: an argument parser with one-line errors, progress, JSON output."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from mllm.errors import UserError
from mllm.files import json_text

Item = TypeVar("Item")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose mistakes are one line and whose examples keep line breaks."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see `{self.prog} --help`")


def printable(text: str) -> str:
    """`text` on one line: control characters, and what UTF-8 cannot spell, as `\\xNN`.

    Names of files and keys may hold line breaks and colour codes of the terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextlib.contextmanager
def stdout_is_json() -> Iterator[None]:
    """Sends everything printed inside to stderr, file descriptor 1 included.

    Libraries print on stdout at import (deepspeed does); with `--json` stdout carries one object
    and nothing else. Call `print_json` after the block.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def print_json(value: Any) -> None:
    """Prints one JSON object on stdout."""
    print(json_text(value), flush=True)


def progress(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    num_bytes: Callable[[Item], int] | None = None,
) -> Iterator[Item]:
    """Iterates with a bar on stderr: done, total, rate, ETA. Silent when stderr is no terminal.

    Args:
        items: What is iterated.
        what: Stands before the bar.
        total: Number of items, where `items` has no length.
        num_bytes: Bytes of an item; the rate is then in MB/s.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    with Progress(*columns, console=console) as bar:
        task_id = bar.add_task(what, total=total, rate="")
        start = shown = time.monotonic()
        done = waiting = amount = 0
        for item in items:
            yield item
            done, waiting, now = done + 1, waiting + 1, time.monotonic()
            amount += num_bytes(item) if num_bytes else 1
            if now - shown > 0.1:  # an update an item would cost more than many items do
                rate = amount / (now - start)
                shown_rate = f"{rate / 1e6:,.0f} MB/s" if num_bytes else f"{rate:,.0f}/s"
                bar.update(task_id, advance=waiting, rate=shown_rate)
                waiting, shown = 0, now
        bar.update(task_id, advance=waiting)

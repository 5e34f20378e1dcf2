"""What the user sees. Answers go to stdout; all else beside them.

On a terminal both are stdout. In a pipe stdout has answers alone, a line each, and notes go to
stderr.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mllm.candidate import CandidateScore
from mllm.chat.pictures import Picture
from mllm.chat.prompt import Usage
from mllm.chat.terminal.thumbnails import Mode, Thumbnails
from mllm.chat.text import printable_lines
from mllm.command import printable

if TYPE_CHECKING:
    from mllm.chat.engine import Stats

METER = 40  # columns of the longest bar


class View:
    """Prints.

    Args:
        is_interactive: a user types at a terminal.
    """

    def __init__(self, is_interactive: bool, thumbnails: Mode = "auto") -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without UTF-8
        self.is_interactive = is_interactive
        self.console = Console(
            stderr=not (is_interactive and sys.stdout.isatty()), highlight=False, markup=False
        )
        self._wraps = self.console.is_terminal  # between words; a pipe has whole lines
        self.thumbnails = Thumbnails(thumbnails if is_interactive else "off", self.console)

    def note(self, text: str, style: str = "") -> None:
        """A line for the user; nothing in it commands the terminal."""
        self.console.print(Text(printable_lines(text), style=style), soft_wrap=not self._wraps)

    def error(self, text: str) -> None:
        self.note(printable(text), style="red")

    def pictures(self, content: Sequence[str | Picture]) -> None:
        """Small pictures of a turn, each with its name."""
        for part in content:
            if isinstance(part, Picture) and self.is_interactive:
                self.thumbnails.draw(part)
                self.note(part.label, style="dim")
            elif isinstance(part, Picture) and part.is_animated:
                self.note(part.label)

    def piece(self, text: str) -> None:
        """A piece of an answer, to stdout. The line is not ended: `end_answer` does so."""
        print(text, end="", flush=True)

    def end_answer(self, is_stopped: bool) -> None:
        if is_stopped and self.is_interactive:
            self.console.print(Text(" [stopped]", style="yellow"), end="")
        print(flush=True)
        if is_stopped and not self.is_interactive:
            self.note("stopped")

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A spinner, on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(text):
            yield

    def candidates(self, scores: Sequence[CandidateScore], shares: Sequence[float]) -> None:
        """Candidates by share of probability; to stdout in a pipe, since they are the answer."""
        order = sorted(range(len(scores)), key=lambda i: -shares[i])
        if not self.is_interactive:
            for i in order:
                print(f"{shares[i]:.6f}\t{scores[i].ll:.4f}\t{printable(scores[i].text.strip())}")
            sys.stdout.flush()
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("candidate", overflow="fold")
        table.add_column("share", justify="right")
        table.add_column("nats", justify="right")
        table.add_column("a token", justify="right")
        for i in order:
            score = scores[i]
            table.add_row(
                Text(printable(score.text.strip())),
                f"{100 * shares[i]:.1f} %",
                f"{score.ll:.2f}",
                f"{score.ll / score.num_tokens:.2f}",
            )
        self.console.print(table)

    def usage(self, usage: Usage, available: int | None, answer: int) -> None:
        """The meter of `/tokens`: who takes how much of the context."""
        limit = "without a limit" if available is None else f"of {available}"
        left = "" if available is None else f", {max(0, available - usage.total)} left"
        self.note(f"{usage.total} positions {limit}{left}; an answer takes up to {answer}")
        width = min(METER, self.console.width - 24)
        most = max(available or 0, usage.total)
        parts = [
            ("shots", usage.shots),
            ("system", usage.system),
            ("turns", usage.turns),
            ("pictures", usage.pictures),
            ("text", usage.text),
        ]
        for name, number in parts:
            bar = "#" * round(width * number / most) if width > 0 else ""
            count = f" in {usage.num_pictures}" if name == "pictures" else ""
            self.note(f"  {name:9}{number:6}{count} {bar}".rstrip(), style="dim")

    def say(self, role: str, content: Sequence[str | Picture] | str) -> None:
        """A line of `/show`."""
        parts = [content] if isinstance(content, str) else content
        words = [part if isinstance(part, str) else f"<{part.label}>" for part in parts]
        line = Text(f"{role:>6} ", style="dim")
        line.append(printable_lines(" ".join(words)), style="")
        self.console.print(line, soft_wrap=not self._wraps)


def stats_line(stats: "Stats") -> str:
    """What `/stats` and `--stats` print after an answer."""
    rate = stats.tokens_per_second
    speed = "" if rate is None else f", then {rate:,.0f} tokens/s"
    known = stats.num_pictures - stats.num_encoded
    return (
        f"first token after {stats.first_seconds:.3f} s{speed}; {stats.num_new} tokens; known of "
        f"before: {stats.num_reused} of {stats.num_prompt} positions, {known} of "
        f"{stats.num_pictures} pictures"
    )


def counted(number: int, what: str) -> str:
    """`1 turn`, `2 turns`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

"""What a run shows while it trains: a progress bar in a terminal, a line now and then in a log."""

import os
import shutil
import sys
import time
from typing import Any

from mllm import dist

BAR_WIDTH = 20  # characters
GAP = "  "


class TerminalLine:
    """One line that each step overwrites, as wide as the terminal; with rate and ETA.

    Where stdout is no terminal: a line of its own every SECONDS_BETWEEN_LINES, without a bar.
    """

    SECONDS_BETWEEN_LINES = 15.0

    def __init__(self, num_steps: int, first_step: int):
        self._num_steps, self._first_step = num_steps, first_step
        self._began = time.monotonic()
        self._shown = -1e9
        self._is_terminal = sys.stdout.isatty()
        self._is_open = False

    def show(self, values: dict[str, Any]) -> None:
        """Tells of a step; `values` are its line of metrics.jsonl."""
        if dist.rank() != 0:
            return
        now, step = time.monotonic(), values["step"]
        is_last = step == self._num_steps
        if not self._is_terminal and now - self._shown < self.SECONDS_BETWEEN_LINES and not is_last:
            return
        self._shown = now
        per_step = (now - self._began) / max(1, step - self._first_step)
        parts = _parts(values, self._num_steps, per_step)
        if not self._is_terminal:
            print(GAP.join(text for _, text in parts), flush=True)
            return
        # The last column stays empty: some terminals wrap as soon as it is written.
        width = shutil.get_terminal_size().columns - 1
        text = fitted([(3, bar(step / self._num_steps)), *parts], width)
        print(f"\r\x1b[K{_coloured(text)}", end="", flush=True)
        self._is_open = True

    def note(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Tells what validation found, on a line that stays."""
        bits = scores.get("validation_bits_per_byte", {})
        parts = [
            f"{name} {value:.3f}" + (f" ({bits[name]:.3f} bits/byte)" if name in bits else "")
            for name, value in scores["validation"].items()
        ]
        self.say(GAP.join([f"step {step}", "validation", *parts]))

    def say(self, text: str) -> None:
        """Tells something else, on a line that stays."""
        self.close()
        dist.say(text)

    def close(self) -> None:
        """Ends the line, so that the next print begins one of its own."""
        if self._is_open:
            print(flush=True)
        self._is_open = False


def _parts(values: dict[str, Any], num_steps: int, per_step: float) -> list[tuple[int, str]]:
    """(rank, text) in the order of the line; where it is narrow, the highest rank goes first."""
    step = values["step"]
    by_source = " ".join(f"{k} {v:.2f}" for k, v in values.get("loss_by_source", {}).items())
    rate = next(
        (
            f"{values[name]:,.0f} {unit}/s"
            for name, unit in (("tokens_per_second", "positions"), ("images_per_second", "img"))
            if name in values
        ),
        "",
    )
    parts = [
        (0, f"step {step}/{num_steps}"),
        (1, f"loss {values['loss']:.3f}"),
        (5, by_source),
        (7, f"lr {values['lr']:.1e}"),
        (4, rate),
        (6, f"{per_step:.2f} s/step"),
        (2, f"ETA {clock(per_step * (num_steps - step))}"),
    ]
    return [(rank, text) for rank, text in parts if text]


def fitted(parts: list[tuple[int, str]], width: int) -> str:
    """The texts of the lowest ranks that fit into `width` characters together, in their order."""
    parts = list(parts)
    while len(parts) > 1 and len(GAP.join(text for _, text in parts)) > width:
        parts.remove(max(parts))
    return GAP.join(text for _, text in parts)[: max(width, 0)]


def bar(share: float) -> str:
    """`━━━━────` of BAR_WIDTH characters; `####....` where stdout cannot encode those."""
    done = int(share * BAR_WIDTH)
    try:
        "━─".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "#" * done + "." * (BAR_WIDTH - done)
    return "━" * done + "─" * (BAR_WIDTH - done)


def _coloured(text: str) -> str:
    """The done part of the bar in green, unless NO_COLOR is set (no-color.org)."""
    done = len(text) - len(text.lstrip("━#"))
    if not done or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[32m{text[:done]}\x1b[0m{text[done:]}"


def clock(seconds: float) -> str:
    """`8:46`, or `3:08:46` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""The line of a run: as wide as the terminal, never wider; now and then in a log."""

import os
import re
import sys
from typing import Any

import pytest

from mllm import terminal
from mllm.terminal import BAR_WIDTH, TerminalLine, bar, clock, fitted

VALUES: dict[str, Any] = {
    "step": 120,
    "loss": 3.2104,
    "loss_by_source": {"pairs": 2.1, "interleaved": 3.3, "text": 4.05},
    "lr": 1.8e-3,
    "tokens_per_second": 3012.4,
}


class Screen:
    """Stands for stdout: a terminal, or not, that keeps what it gets."""

    encoding = "utf-8"

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal, self.text = is_terminal, ""

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, **values: Any) -> str:
    """What a terminal of so many columns shows of one step, colours included."""
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    TerminalLine(520, 100).show(VALUES | values)
    monkeypatch.undo()
    return screen.text.removeprefix("\r\x1b[K")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


@pytest.mark.parametrize("columns", [1, 8, 20, 40, 60, 80, 120, 200])
def test_the_line_never_wraps(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    line = plain(shown(monkeypatch, columns, loss_by_source={f"source {i}": 1.0 for i in range(9)}))
    assert len(line) < columns and "\n" not in line


def test_a_wide_terminal_shows_all_and_a_narrow_one_what_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = plain(shown(monkeypatch, 200))
    order = ["━", "step 120/520", "loss 3.210", "pairs 2.10", "lr 1.8e-03", "3,012 positions/s"]
    order += ["s/step", "ETA"]
    assert [wide.index(part) for part in order] == sorted(wide.index(part) for part in order)
    assert plain(shown(monkeypatch, 60)).startswith("━━━━────────────────  step 120/520")
    assert plain(shown(monkeypatch, 40)) == "step 120/520  loss 3.210  ETA 0:00"
    assert plain(shown(monkeypatch, 20)) == "step 120/520"


def test_colour_is_left_out_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in shown(monkeypatch, 100)
    os.environ["NO_COLOR"] = "1"
    try:
        assert "\x1b[" not in shown(monkeypatch, 100)
    finally:
        del os.environ["NO_COLOR"]


def test_a_log_gets_a_line_every_so_often_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = Screen(is_terminal=False), [0.0]
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    line = TerminalLine(100, 0)
    for step in range(1, 101):
        now[0] = 0.5 * step
        line.show(VALUES | {"step": step})
    lines = screen.text.splitlines()
    assert [text.split()[1] for text in lines] == ["1/100", "31/100", "61/100", "91/100", "100/100"]
    assert all(" loss 3.210 " in text and "━" not in text for text in lines)
    assert "0.50 s/step  ETA 0:34" in lines[1]


def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("RANK", "1")
    TerminalLine(520, 0).show(VALUES)
    assert screen.text == ""


def test_validation_stands_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(sys, "stdout", screen)
    line = TerminalLine(520, 0)
    line.show(VALUES)
    bits = {"pairs": 0.9}
    line.note(120, {"validation": {"pairs": 2.0, "b": 1.0}, "validation_bits_per_byte": bits})
    line.note(240, {"validation": {"zero_shot_5way": 0.5}})
    assert screen.text.splitlines()[-2:] == [
        "step 120  validation  pairs 2.000 (0.900 bits/byte)  b 1.000",
        "step 240  validation  zero_shot_5way 0.500",
    ]
    assert screen.text.count("\n") == 3


def test_the_bar_fills_up_and_knows_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(sys, "stdout", screen)
    assert (bar(0), bar(1)) == ("─" * BAR_WIDTH, "━" * BAR_WIDTH)
    screen.encoding = "ascii"
    assert bar(0.5) == "##########.........."


def test_times_are_read_as_on_a_clock() -> None:
    assert [clock(s) for s in (0, 59.9, 526, 11326)] == ["0:00", "0:59", "8:46", "3:08:46"]


def test_the_least_important_goes_first() -> None:
    parts = [(0, "step"), (2, "loss"), (1, "eta")]
    assert [fitted(parts, width) for width in (15, 9, 4, 2)] == ["step  loss  eta", "step  eta"] + [
        "step",
        "st",
    ]

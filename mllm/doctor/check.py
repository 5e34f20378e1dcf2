"""What a check says of itself: a number, what it may be, and whether it is."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    name: str
    value: float | None  # None: there is no number
    limit: float | None  # the largest value that passes
    unit: str
    is_passed: bool | None  # None: not run
    note: str = ""

    @property
    def status(self) -> str:
        return {True: "pass", False: "FAIL", None: "not run"}[self.is_passed]

    def line(self) -> str:
        """One line for a terminal."""
        if self.value is None:
            return f"{self.status:8}{self.name}: {self.note}"
        said = f"{self.status:8}{self.name}: {self.value:.3g} {self.unit} (at most {self.limit:g})"
        return f"{said}; {self.note}" if self.note else said


def measured(name: str, value: float, limit: float, unit: str, note: str = "") -> Check:
    """Passes where `value` is at most `limit`."""
    if not math.isfinite(value):  # JSON has no such number
        return failed(name, f"came to {value}")
    return Check(name, value, limit, unit, value <= limit, note)


def failed(name: str, reason: str) -> Check:
    """A check that came to no number because what it examines broke."""
    return Check(name, None, None, "", False, reason)


def not_run(name: str, reason: str) -> Check:
    return Check(name, None, None, "", None, reason)

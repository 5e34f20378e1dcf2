"""Texts at which an answer ends."""

from collections.abc import Sequence


class Stops:
    """Gives an answer's pieces on, up to the first stop, which is not given.

    Text that may be the beginning of a stop is held back until it is known.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.is_over = False
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be given out now."""
        if self.is_over:
            return ""
        text = self._held + piece
        places = [place for stop in self.texts if (place := text.find(stop)) >= 0]
        if places:
            self.is_over, self._held = True, ""
            return text[: min(places)]
        size = self._num_open(text)
        self._held = text[len(text) - size :]
        return text[: len(text) - size]

    def end(self) -> str:
        """What was held when nothing follows."""
        held, self._held = self._held, ""
        return held

    def _num_open(self, text: str) -> int:
        """Characters at the end with which a stop begins."""
        longest = max((len(stop) for stop in self.texts), default=0)
        for size in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.texts):
                return size
        return 0

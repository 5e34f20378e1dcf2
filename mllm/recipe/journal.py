"""`times.json`: what each step was made from, whether it ended, and how long it took in all."""

import json
import time
from pathlib import Path
from typing import Any

from mllm.config import read_text
from mllm.errors import UserError
from mllm.files import write_json
from mllm.recipe.steps import Step


class Journal:
    """The steps' entries by name, on disk after every change.

    Attributes:
        entries: `command` (the step's fingerprint), `inputs` (the steps it needs: when each ended),
            `is_done`, `finished` (Unix seconds; None while it has not ended well), `seconds`
            over all attempts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Any] = {}
        if path.exists():
            try:
                self.entries = json.loads(read_text(path))
            except ValueError as error:
                raise UserError(
                    f"{path}: not JSON ({error}); delete it: each step then goes on from what it "
                    "finds in its folder"
                ) from None

    def begin(self, step: Step) -> None:
        """Notes that a step runs from the inputs as they are now."""
        before = self.entries.get(step.name, {})
        seconds = before.get("seconds", 0.0) if before.get("command") == step.fingerprint else 0.0
        self.entries[step.name] = {
            "command": step.fingerprint,
            "inputs": self._inputs(step),
            "is_done": False,
            "finished": None,
            "seconds": seconds,
        }
        write_json(self.path, self.entries)

    def end(self, step: Step, seconds: float, *, is_done: bool) -> None:
        entry = self.entries[step.name]
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        entry["is_done"] = is_done
        entry["finished"] = round(time.time(), 3) if is_done else None
        write_json(self.path, self.entries)

    def note(self, name: str, value: Any) -> None:
        """Keeps something else under a name of its own."""
        self.entries[name] = value
        write_json(self.path, self.entries)

    def forget(self, step: Step) -> None:
        self.entries.pop(step.name, None)
        write_json(self.path, self.entries)

    def is_done(self, step: Step) -> bool:
        """Ended well, by this command, and what it made is still there."""
        entry = self.entries.get(step.name, {})
        return (
            entry.get("is_done", False)
            and entry.get("command") == step.fingerprint
            and (step.folder / step.output).exists()
        )

    def is_of_other_inputs(self, step: Step) -> bool:
        """A step that it needs ran again since."""
        entry = self.entries.get(step.name)
        return entry is not None and entry.get("inputs") != self._inputs(step)

    def _inputs(self, step: Step) -> dict[str, float | None]:
        return {name: self.entries.get(name, {}).get("finished") for name in step.needs}

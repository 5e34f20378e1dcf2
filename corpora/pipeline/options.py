"""Options of import steps: a type, a default, and one sentence that the command's help shows."""

from dataclasses import field
from typing import Any


def option(default: Any, sentence: str) -> Any:
    """A dataclass field whose `metadata["help"]` is `sentence`."""
    return field(default=default, metadata={"help": sentence})

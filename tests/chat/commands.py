"""The command as its users start it."""

import sys
from typing import Any


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "mllm.cli", "chat", *map(str, arguments)]

"""What Tab offers: commands, settings, branches, and paths with their spaces kept."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from mllm.chat.terminal.commands import COMMANDS, LEAVING, OTHERS

MAX_OFFERED = 200
PATH_COMMANDS = ("/image", "/shot", "/describe", "/save", "/load")
# What a shell would need a backslash before.
SPECIAL = re.compile(r"""([\s\\'"|=])""")
LAST_WORD = re.compile(r"""("[^"]*|'[^']*|(?:\\.|[^\s\\])*\\?)$""")


class ChatCompleter(Completer):
    """Completes the word at the cursor.

    Args:
        names: of what may follow a command: settings after `/set`, branches after `/branch`.
    """

    def __init__(self, names: Callable[[str], list[str]]) -> None:
        self._names = names

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        before = document.text_before_cursor
        match = LAST_WORD.search(before)
        word = match[0] if match else ""
        command = before.split(" ", 1)[0]
        if before == word and word.startswith("/") and "/" not in word[1:]:
            yield from _matching(word, [*COMMANDS, *OTHERS, *LEAVING[1:]])
            return
        names = self._names(command) if before.startswith("/") else []
        if names and before.count(" ") == 1:
            yield from _matching(word, names)
        elif command in PATH_COMMANDS or _looks_like_path(word):
            yield from _paths(word)


def _matching(word: str, names: list[str]) -> Iterator[Completion]:
    for name in names:
        if name.startswith(word):
            yield Completion(name, start_position=-len(word))


def _looks_like_path(word: str) -> bool:
    return word.lstrip("\"'").startswith(("/", "./", "../", "~")) or "/" in word


def _paths(word: str) -> Iterator[Completion]:
    """Files and folders that begin like `word`; quoted as `word` is, else by backslashes."""
    quote = word[:1] if word[:1] in ("'", '"') else ""
    typed = word[1:] if quote else re.sub(r"\\(.)", r"\1", word.rstrip("\\"))
    folder, beginning = os.path.split(typed)
    try:
        place = Path(folder).expanduser() if folder else Path(".")
        found: list[Any] = sorted(os.scandir(place), key=lambda entry: entry.name)
    except (OSError, RuntimeError, ValueError):
        return
    shown = [entry for entry in found if _is_offered(entry.name, beginning)]
    for entry in shown[:MAX_OFFERED]:
        path = os.path.join(folder, entry.name)
        is_folder = entry.is_dir()
        text = path if quote else SPECIAL.sub(r"\\\1", path)
        ending = "/" if is_folder else quote
        display = entry.name + ("/" if is_folder else "")
        yield Completion(quote + text + ending, start_position=-len(word), display=display)


def _is_offered(name: str, beginning: str) -> bool:
    is_hidden = name.startswith(".") and not beginning.startswith(".")
    return name.startswith(beginning) and not is_hidden and name.isprintable()

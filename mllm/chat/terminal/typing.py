"""Lines from a keyboard, or through a pipe."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.output.base import Output

from mllm.chat.sampling import Sampling
from mllm.chat.terminal.completion import ChatCompleter
from mllm.chat.terminal.session import Session
from mllm.chat.terminal.view import View, counted
from mllm.command import printable

REFRESH_SECONDS = 0.5  # of the status line while the model loads


def piped_lines() -> Iterator[str]:
    """Lines of stdin; bytes that are no UTF-8 become U+FFFD."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    yield from sys.stdin


def history_path() -> Path:
    """Where lines are kept over sessions."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "mllm" / "chat_history"


def open_history(path: Path, view: View) -> History:
    """A history that only its owner can read; one in memory where the place cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(handle, 0o600)  # also where it was there already
        os.close(handle)
    except OSError as error:
        view.note(f"{printable(str(path))}: {error.strerror}; lines are not kept", style="dim")
        return InMemoryHistory()
    return _CarefulHistory(str(path))


class _CarefulHistory(FileHistory):
    """Never ends a chat: a full disk only loses the line. Bytes that are no UTF-8 are read over."""

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string.encode(errors="replace").decode())
        except OSError:
            return


class Keyboard:
    """The prompt: history, completion, a status line, a line to be edited.

    Args:
        history: None keeps lines in memory.
    """

    def __init__(self, view: View, history: Path | None) -> None:
        self._view = view
        self._session: Session | None = None
        self._failure: BaseException | None = None
        kept = InMemoryHistory() if history is None else open_history(history, view)
        output: Output = create_output(always_prefer_tty=True)
        depth = ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None
        self._prompt: PromptSession[str] = PromptSession(
            history=kept,
            completer=ChatCompleter(self._names),
            complete_while_typing=False,
            bottom_toolbar=self._status,
            refresh_interval=REFRESH_SECONDS,
            output=output,
            color_depth=depth,
            enable_open_in_editor=True,
        )
        self._choice: PromptSession[str] = PromptSession(output=output, color_depth=depth)

    def attach(self, session: Session) -> None:
        """Tells whose state the status line shows."""
        self._session = session

    def fail(self, error: BaseException) -> None:
        """Ends the prompt with an error. From any thread."""
        self._failure = error
        app: Any = self._prompt.app
        if app.is_running and app.loop is not None:
            app.loop.call_soon_threadsafe(lambda: app.exit(exception=error))

    def lines(self) -> Iterator[str]:
        """What the user types, until Ctrl-D."""
        while self._session is not None:
            if self._failure is not None:
                raise self._failure
            prefill, self._session.prefill = self._session.prefill, ""
            try:
                yield self._prompt.prompt("> ", default=printable(prefill))
            except KeyboardInterrupt:  # an empty line: Ctrl-D leaves
                self._session.leave_editing()
            except EOFError:
                return

    def choose(self, question: str, letters: str) -> str:
        """One of `letters`; the last of them for Ctrl-C and Ctrl-D."""
        self._view.note(question)
        keys = KeyBindings()
        for letter in letters:
            keys.add(letter)(lambda event, letter=letter: event.app.exit(result=letter))
        while True:
            try:
                given = self._choice.prompt(f"[{'/'.join(letters)}] ", key_bindings=keys)
            except (KeyboardInterrupt, EOFError):
                return letters[-1]
            if given in letters and given:
                return given

    def _names(self, command: str) -> list[str]:
        if command == "/set":
            return [*Sampling().values, "when_full"]
        if command == "/branch" and self._session is not None:
            return list(self._session.branches.by_name)
        if command == "/shots":
            return ["drop", "clear"]
        return []

    def _status(self) -> FormattedText:
        session = self._session
        if session is None or not session.loading.is_ready:
            return FormattedText([("", "loading the model ...")])
        sampling, conversation = session.sampling, session.conversation
        parts = [counted(len(conversation.turns), "turn")]
        if conversation.shots:
            parts.append(counted(len(conversation.shots), "shot"))
        parts.append(f"temperature {sampling.temperature:g}")
        if len(session.branches.by_name) > 1:
            parts.append(f"branch {printable(session.branches.current)}")
        parts.append("/help")
        return FormattedText([("", " · ".join(parts))])

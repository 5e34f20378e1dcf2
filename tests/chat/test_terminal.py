"""The prompt on a terminal: a pseudo-terminal here, tmux with what it draws in the slow ones."""

import os
import pty
import re
import select
import shlex
import time
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from mllm.chat.pictures import read_picture
from mllm.chat.terminal.completion import ChatCompleter
from mllm.chat.terminal.thumbnails import Mode, Thumbnails
from tests.chat.commands import command
from tests.hf.tiny import make_tiny, png

PROMPT = "\x1b[?2004h"  # bracketed paste goes on when prompt-toolkit waits for a line
ACCEPTED = "\x1b[?2004l"  # and off when it has one


def completed(line: str) -> list[str]:
    """The lines that Tab offers."""
    completer = ChatCompleter(lambda name: ["temperature", "top_p"] if name == "/set" else [])
    document = Document(line)
    return [
        line[: len(line) + found.start_position] + found.text
        for found in completer.get_completions(document, CompleteEvent())
    ]


def test_tab_completes_commands_settings_and_paths(folder: Path):
    (folder / "a folder").mkdir()
    (folder / "a folder" / "dog's.png").write_bytes(png(1))
    (folder / ".hidden.png").write_bytes(png(1))
    (folder / "evil\x1b[2J.png").write_bytes(png(1))
    assert completed("/sh") == ["/shot", "/shots", "/show"]
    assert completed("/set t") == ["/set temperature", "/set top_p"]
    assert completed("/image ca") == ["/image cat.png"]
    assert completed("/image tw") == ["/image two\\ words.png"]
    assert completed("/image 'tw") == ["/image 'two words.png'"]
    assert completed("see ./a") == ["see ./a\\ folder/"]
    assert completed("see ./a\\ folder/") == ["see ./a\\ folder/dog\\'s.png"]
    assert completed('see "./a folder/d') == ['see "./a folder/dog\'s.png"']
    assert completed("what is th") == []
    assert completed("/image e") == []  # a name that would command the terminal is not offered
    assert completed("/image gone/x") == [] and completed("see ~nobody/x") == []
    # What is completed is what is read.
    (line,) = completed("see ./a\\ folder/")
    assert shlex.split(line)[-1] == "./a folder/dog's.png"


def drawn(mode: Mode, width: int = 40, **settings: object) -> str:
    console = Console(
        force_terminal=True,
        width=width,
        color_system="truecolor",
        **settings,  # type: ignore[arg-type]
    )
    with console.capture() as shown:
        Thumbnails(mode, console).draw(read_picture("cat.png"))
    return shown.get()


def test_thumbnails_are_drawn_as_the_terminal_takes_them(folder: Path):
    blocks = drawn("blocks")
    lines = re.sub(r"\x1b\[[\d;]*m", "", blocks).splitlines()
    assert 0 < len(lines) <= 10 and max(map(len, lines)) <= 28
    # Kitty is sent the picture aside, and draws it where this character stands.
    assert "\x1bP" in drawn("sixel") and "\U0010eeee" in drawn("kitty")
    assert (
        max(len(line) for line in re.sub(r"\x1b\[[\d;]*m", "", drawn("blocks", 10)).splitlines())
        < 10
    )
    assert drawn("off") == ""
    assert drawn("auto", no_color=True) == ""


def read_until(terminal: int, text: str, seconds: float = 60.0) -> str:
    """What the terminal showed up to and with `text`."""
    shown, deadline = b"", time.monotonic() + seconds
    while text.encode() not in shown:
        left = deadline - time.monotonic()
        assert left > 0, f"no {text!r} in {shown.decode(errors='replace')!r}"
        if select.select([terminal], [], [], left)[0]:
            data = os.read(terminal, 4096)
            shown += data
            if b"\x1b[6n" in data:  # prompt-toolkit asks where the cursor is
                os.write(terminal, b"\x1b[1;1R")
    return shown.decode(errors="replace")


def test_ctrl_c_stops_the_answer_and_not_the_program(folder: Path):
    # Not trained, it goes on without an end, in a context that takes seconds to fill.
    long = make_tiny(folder, seq_len=32768).export
    line = command("--model", long, "--max-new-tokens", 30000)
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm", "XDG_STATE_HOME": str(folder / "state")}
        os.execv(line[0], line)
    try:
        read_until(terminal, PROMPT)
        os.write(terminal, b"/image cat.png\r")
        read_until(terminal, "(24 x 24)")
        read_until(terminal, "\x1b[?25h")  # the spinner has gone
        time.sleep(1)
        os.write(terminal, b"\x03")
        assert "[stopped]" in read_until(terminal, PROMPT)
        os.write(terminal, b"./gone.png\r")
        read_until(terminal, "No such file or directory")
        read_until(terminal, PROMPT)
        os.write(terminal, b"\xff\xfe is it\xc3 red\r")  # bytes that are no UTF-8
        read_until(terminal, ACCEPTED)
        time.sleep(0.5)
        os.write(terminal, b"\x03")
        read_until(terminal, PROMPT)
        os.write(terminal, b"/quit\r")
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)
    history = folder / "state" / "mllm" / "chat_history"
    assert "/image cat.png" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0

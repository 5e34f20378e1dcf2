"""The prompt as a user sees it: tmux draws it, keys are sent, the screen is read."""

import json
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.chat.commands import command
from tests.hf.tiny import make_tiny

pytestmark = pytest.mark.slow

SECONDS = 60.0  # longest wait for anything


class Screen:
    """A terminal with a program in it.

    Args:
        line: what is run; where it leaves, `left with CODE` stands on the screen.
    """

    def __init__(self, line: list[str], folder: Path, width: int = 90, height: int = 40) -> None:
        assert shutil.which("tmux"), "these tests need tmux: apt-get install tmux"
        self._tmux = ["tmux", "-L", f"mllm-{uuid.uuid4().hex[:8]}", "-f", "/dev/null"]
        shell = f"cd {shlex.quote(str(folder))}; {shlex.join(line)}; echo left with $?; sleep 600"
        size = ["-x", str(width), "-y", str(height)]
        self._call("new-session", "-d", *size, "sh", "-c", shell)

    def _call(self, *arguments: str) -> str:
        run = subprocess.run([*self._tmux, *arguments], capture_output=True, check=True)
        return run.stdout.decode()

    def shown(self, *flags: str) -> str:
        """What stands on the screen and above it."""
        return self._call("capture-pane", "-p", "-S", "-2000", *flags)

    def keys(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def wait(self, is_there: Callable[[str], Any]) -> str:
        deadline = time.monotonic() + SECONDS
        while not is_there(shown := self.shown()):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return shown

    def prompts(self) -> int:
        return _num_prompts(self.shown())

    def type(self, line: str) -> str:
        """Types a line; what stands from it on once the next prompt is there."""
        self.wait(_is_idle)
        number = self.prompts()
        self.keys("-l", "--", line)
        self.keys("Enter")
        shown = self.wait(lambda text: _num_prompts(text) > number and _is_idle(text))
        return shown[max(0, shown.rfind(f"> {line[:10]}")) :]

    def resize(self, width: int, height: int) -> None:
        self._call("resize-window", "-x", str(width), "-y", str(height))

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True)


def _num_prompts(shown: str) -> int:
    return sum(line.startswith(">") for line in shown.splitlines())


def _is_idle(shown: str) -> bool:
    """Whether the last prompt waits for a line."""
    prompts = [line.rstrip() for line in shown.splitlines() if line.startswith(">")]
    return bool(prompts) and prompts[-1] == ">"


Open = Callable[..., Screen]


@pytest.fixture
def screen(tiny: SimpleNamespace, folder: Path) -> Iterator[Open]:
    """Opens a chat; environment and more arguments as given."""
    opened: list[Screen] = []

    def start(*arguments: Any, model: Path = tiny.export, env: str = "", **size: int) -> Screen:
        settings = [f"XDG_STATE_HOME={folder}/state", *env.split()]
        line = ["env", *settings, *command("--model", model, "--max-new-tokens", 8, *arguments)]
        opened.append(Screen(line, folder, **size))
        opened[-1].wait(lambda text: "\n>" in text)
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_conversation_with_pictures_in_it(screen: Open, folder: Path):
    chat = screen("--stats")
    assert "▀" in chat.type("cat.png")
    assert "first token after" in chat.type("is it red?")
    both = chat.type("and cat.png beside 'two words.png' now?")
    assert both.count("(24 x 24)") == 2
    assert "3 turns" in chat.shown()
    assert "taken back: and <cat.png" in chat.type("/undo")
    assert "2 turns" in chat.shown()
    for path, reason in (
        ("./gone.png", "No such file"),
        ("./bad.png", "not a picture"),
        ("/image drawn.svg", "draw it as PNG first"),
        ("./pipe.png", "not a file"),
    ):
        assert reason in chat.type(path)
    Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    assert "too large" in chat.type("./huge.png")
    assert "animated: its first frame" in chat.type("./moving.gif")
    assert "saved to chat.json" in chat.type("/save chat.json")
    assert "A new conversation" in chat.type("/reset")
    assert "3 turns" in chat.type("/load chat.json")
    assert "red" in chat.type("/rank red | blue") and "%" in chat.shown()
    assert "positions of 256" in chat.type("/tokens")
    chat.keys("-l", "--", "/quit")
    chat.keys("Enter")
    chat.wait(lambda text: "left with 0" in text)
    assert json.loads((folder / "chat.json").read_text())["format"] == "mllm chat"


def test_an_edited_turn_begins_as_it_was(screen: Open):
    chat = screen()
    chat.type("the quick brown fox")
    chat.keys("-l", "--", "/edit")
    chat.keys("Enter")
    chat.wait(lambda text: text.count("> the quick brown fox") == 2)
    chat.keys("BSpace", "BSpace", "BSpace")
    chat.keys("-l", "--", "cat")
    chat.keys("Enter")
    chat.wait(lambda text: "> the quick brown cat" in text and _is_idle(text))
    assert "> the quick brown cat" in chat.shown() and "1 turn " in chat.shown()


def test_completion_and_history_over_sessions(screen: Open):
    chat = screen()
    chat.keys("-l", "--", "/image tw")
    chat.keys("Tab")
    chat.wait(lambda text: "/image two\\ words.png" in text)
    chat.keys("Enter")
    chat.wait(lambda text: "1 turn " in text)
    chat.keys("C-d")
    chat.wait(lambda text: "left with 0" in text)
    again = screen()
    again.keys("Up")
    assert again.wait(lambda text: "> /image two\\ words.png" in text)


def test_ctrl_c_stops_one_answer(screen: Open, folder: Path):
    endless = make_tiny(folder, seq_len=32768).export
    chat = screen(model=endless)
    chat.type("is it?")  # and the model is there
    chat.type("/set max_new_tokens 30000")
    chat.keys("-l", "--", "cat.png")
    chat.keys("Enter")
    chat.wait(lambda text: "(24 x 24)" in text)
    time.sleep(1)
    chat.keys("C-c")
    chat.wait(lambda text: "[stopped]" in text)
    chat.type("/set max_new_tokens 4")
    chat.type("is it red?")
    assert "3 turns" in chat.shown()
    chat.keys("C-c")  # at the prompt it only empties the line
    chat.type("/tokens")


@pytest.mark.parametrize("letter, result", [("d", "left out now"), ("c", "make room")])
def test_a_full_context_asks_what_gives_way(screen: Open, letter: str, result: str):
    chat = screen()
    for _ in range(3):
        chat.type("the fox jumps over the dog")
    chat.keys("-l", "--", "the lazy dog; " * 12)
    chat.keys("Enter")
    chat.wait(lambda text: "[d]rop the oldest" in text.replace("\n", " "))
    chat.keys(letter)
    chat.wait(lambda text: result in text.replace("\n", " "))
    assert ("4 turns" in chat.type("/tokens") + chat.shown()) == (letter == "d")


def test_a_narrow_and_a_resized_terminal(screen: Open):
    chat = screen(width=24, height=12)
    chat.type("cat.png")
    chat.resize(70, 30)
    chat.type("is it red?")
    chat.resize(30, 10)
    chat.type("/help")
    shown = chat.type("/tokens")
    assert max(map(len, shown.splitlines())) <= 30
    chat.resize(8, 4)
    chat.resize(60, 20)
    assert "positions" in chat.type("/tokens")


def test_no_color_means_none(screen: Open):
    chat = screen(env="NO_COLOR=1")
    assert "▀" not in chat.type("cat.png")
    chat.type("./gone.png")
    chat.type("/rank red | blue")
    colours = re.findall(r"\x1b\[([\d;]*)m", chat.shown("-e"))
    assert not [c for c in colours if re.search(r"\b(3[0-8]|4[0-8]|9\d|10\d)\b", c)]


def test_a_terminal_without_utf8(screen: Open):
    chat = screen(env="LC_ALL=C PYTHONIOENCODING=latin-1 PYTHONUTF8=0")
    chat.type("is it red?")
    assert "1 turn " in chat.shown()


def test_with_stdout_piped_the_answer_is_all_that_is_in_it(tiny: SimpleNamespace, folder: Path):
    line = command("--model", tiny.export, "--max-new-tokens", 6, "--no-history")
    chat = Screen(["sh", "-c", f"{shlex.join(line)} > answers.txt"], folder)
    try:
        chat.wait(lambda text: "\n>" in text)
        chat.type("cat.png")
        chat.type("./gone.png")
        chat.type("is it red?")
        chat.keys("C-d")
        chat.wait(lambda text: "left with 0" in text)
    finally:
        chat.close()
    assert len((folder / "answers.txt").read_text().splitlines()) == 2


def test_a_model_that_does_not_load_ends_the_prompt_at_once(folder: Path):
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"model_type": "mllm"}')
    chat = Screen(command("--model", "broken", "--no-history"), folder)
    try:
        shown = chat.wait(lambda text: "left with 2" in text)
    finally:
        chat.close()
    assert "mllm: error: broken: not a whole export" in shown.replace("\n", "")

"""`mllm chat` as its users meet it: once, through a pipe, and on a terminal."""

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from mllm.chat import Conversation, content_of, image_command, printable
from mllm.cli import main
from mllm.errors import UserError
from tests.hf.tiny import make_tiny, png


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "cat.png").write_bytes(png(1))
    (tmp_path / "two words.png").write_bytes(png(2))
    (tmp_path / "bad.png").write_bytes(b"not a picture at all")
    return tmp_path


def kinds(content):
    return [item.get("text", "PICTURE") for item in content]


def test_once_prints_the_answer_alone(tiny, pictures, capfd):
    arguments = ["--model", str(tiny.export), "--image", str(pictures / "cat.png")]
    assert main(["chat", *arguments, "--once", "is it red?", "--max-new-tokens", "12"]) == 0
    printed = capfd.readouterr().out
    inputs = tiny.processor.from_segments([[pictures / "cat.png", "Question: is it red? Answer:"]])
    newline = tiny.tokenizer.encode("\n")
    tokens = tiny.model.generate(
        **inputs, max_new_tokens=12, do_sample=False, eos_token_id=[2, *newline]
    )[0, inputs["input_ids"].shape[1] :]
    answer = tiny.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert printed == printable(answer).strip() + "\n"


def test_a_conversation_remembers_and_stops_when_its_answer_is_closed(tiny, pictures):
    conversation = Conversation(tiny.export, max_new_tokens=8)
    first = "".join(conversation.answer(content_of(f"{pictures}/cat.png")))
    pieces = conversation.answer(content_of("is it red?"))
    pieces.close()  # before it began: nothing was asked
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1]["content"] == first
    "".join(conversation.answer(content_of("is it red?")))
    assert len(conversation.messages) == 4
    conversation.reset()
    assert conversation.messages == []


def test_a_model_of_the_instruct_stage_is_asked_by_its_template(tiny, pictures, tmp_path):
    """And an answer goes on over lines, up to `</s>`."""
    shutil.copytree(tiny.export, tmp_path / "instructed")
    path = tmp_path / "instructed" / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"template": "instruction"}))
    conversation = Conversation(path.parent, max_new_tokens=8)
    answer = "".join(conversation.answer(content_of(f"{pictures}/cat.png is it red?")))
    prompt = [pictures / "cat.png", "Instruction: is it red?", "\nOutput:"]
    inputs = tiny.processor.from_segments([prompt])
    tokens = tiny.model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=2)[
        0, inputs["input_ids"].shape[1] :
    ]
    expected = tiny.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert answer.strip() == printable(expected).strip()


def test_a_conversation_that_outgrows_the_context_says_so(tiny):
    conversation = Conversation(tiny.export, max_new_tokens=100)
    with pytest.raises(UserError, match=r"takes \d+ positions .* the model has 128; /reset"):
        list(conversation.answer([{"type": "text", "text": "red " * 40}]))
    assert conversation.messages == []


def test_blockwise_attention_in_config_json_lets_a_conversation_go_on(tiny, tmp_path):
    shutil.copytree(tiny.export, tmp_path / "long")
    path = tmp_path / "long" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"blockwise_attention": True}))
    conversation = Conversation(path.parent, max_new_tokens=3)
    "".join(conversation.answer([{"type": "text", "text": "red " * 100}]))
    assert len(conversation.messages) == 2


def test_paths_are_found_anywhere_in_a_line(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    assert kinds(content_of("look: cat.png what's it?")) == ["look:", "PICTURE", "what's it?"]
    assert kinds(content_of("'two words.png' and two\\ words.png")) == ["PICTURE", "and", "PICTURE"]
    assert kinds(content_of("./cat.png ./cat.png")) == ["PICTURE", "PICTURE"]
    assert kinds(content_of("I wrote to logo.png yesterday, don't ask")) == [
        "I wrote to logo.png yesterday, don't ask"
    ]
    assert kinds(image_command("cat.png is it red?")) == ["PICTURE", "is it red?"]
    assert kinds(image_command("'two words.png'")) == ["PICTURE"]
    with pytest.raises(UserError, match="No such file"):
        content_of("./dog.png")
    with pytest.raises(UserError, match="not a picture"):
        image_command("bad.png")


def test_punctuation_after_a_path_goes_back_to_the_text(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    assert kinds(content_of("what colour is in cat.png?")) == ["PICTURE", "what colour is in?"]
    assert kinds(content_of("see ./cat.png, what is it?")) == ["see,", "PICTURE", "what is it?"]
    assert kinds(content_of("cat.png: is it red?")) == ["PICTURE", "is it red?"]
    assert kinds(content_of("cat.png!")) == ["PICTURE"]
    assert kinds(content_of("look at two\\ words.png...")) == ["look at...", "PICTURE"]


def test_a_word_that_only_looks_like_a_picture_is_noted(tiny, pictures, monkeypatch, capfd):
    monkeypatch.chdir(pictures)
    assert kinds(content_of("is it in dog.png?")) == ["is it in dog.png?"]
    assert capfd.readouterr().out == "dog.png: no such file; taken as text\n"
    arguments = ["--model", str(tiny.export), "--max-new-tokens", "4", "--once"]
    assert main(["chat", *arguments, "dog.png or cat.png?"]) == 0
    printed = capfd.readouterr()
    assert printed.err == "dog.png: no such file; taken as text\n"
    assert main(["chat", *arguments, "dog.png or?", "--image", "cat.png"]) == 0
    assert capfd.readouterr().out == printed.out


def test_control_characters_never_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\u202ec\nd") == "a[2Jbc\nd"


PROMPT = "\x1b[?2004h"  # bracketed paste goes on when prompt-toolkit waits for a line
ACCEPTED = "\x1b[?2004l"  # and off when it has one


def command(*arguments):
    return [sys.executable, "-m", "mllm.cli", "chat", *map(str, arguments)]


def test_a_piped_conversation_survives_bad_paths_and_bytes(tiny, pictures):
    lines = b"/image cat.png\nis it red?\n./gone.png what?\nbad.png\n/nonsense\n/reset\n\xff\xfe?\n"
    run = subprocess.run(
        command("--model", tiny.export, "--max-new-tokens", 8),
        input=lines,
        cwd=pictures,
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr
    printed = run.stdout.decode().splitlines()
    assert printed[2:6] == [
        "./gone.png: No such file or directory",
        "bad.png: not a picture (20 bytes, first b'not a pi')",
        "No command /nonsense; /help lists them.",
        "A new conversation.",
    ]
    assert len(printed) == 7  # and three answers


def test_one_line_for_a_missing_model_or_picture(tiny, tmp_path, capsys):
    for arguments, reason in (
        (["--model", "nowhere", "--once", "x"], "nowhere: no model here"),
        (["--model", str(tiny.export), "--image", "gone.png", "--once", "x"], "gone.png: No such"),
        (["--model", str(tiny.export), "--once", " "], "--once needs a text"),
    ):
        assert main(["chat", *arguments]) == 2
        printed = capsys.readouterr()
        assert reason in printed.err and printed.err.count("\n") == 1
        assert printed.out == ""


def read_until(terminal, text, seconds=60.0):
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


def test_ctrl_c_stops_the_answer_and_not_the_program(tiny, pictures):
    long = pictures / "long"  # the same weights with a context that takes seconds to fill
    shutil.copytree(tiny.export, long)
    settings = json.loads((long / "config.json").read_text())
    (long / "config.json").write_text(json.dumps(settings | {"seq_len": 32768}))
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(pictures)
        os.environ["TERM"] = "xterm"
        line = command("--model", long, "--max-new-tokens", 30000)
        os.execv(line[0], line)
    try:
        read_until(terminal, PROMPT)
        os.write(terminal, b"/image cat.png\r")
        read_until(terminal, ACCEPTED)
        time.sleep(1)
        os.write(terminal, b"\x03")
        assert "[stopped]" in read_until(terminal, PROMPT)
        os.write(terminal, b"./gone.png\r")
        read_until(terminal, "No such file or directory")
        os.write(terminal, b"/quit\r")
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)

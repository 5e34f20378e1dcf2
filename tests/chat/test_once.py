"""`mllm chat` without a prompt: once, in batches, replayed, and its lines through a pipe."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm.chat.text import printable_lines
from mllm.cli import main
from tests.chat.commands import command
from tests.hf.tiny import png


def test_once_prints_the_answer_alone(
    tiny: SimpleNamespace, folder: Path, capfd: pytest.CaptureFixture[str]
):
    arguments = ["--model", str(tiny.export), "--image", "cat.png"]
    assert main(["chat", *arguments, "--once", "is it red?", "--max-new-tokens", "12"]) == 0
    printed = capfd.readouterr().out
    inputs = tiny.processor.from_segments([[folder / "cat.png", "Question: is it red? Answer:"]])
    newline = tiny.tokenizer.encode("\n")
    tokens = tiny.model.generate(
        **inputs, max_new_tokens=12, do_sample=False, eos_token_id=[2, *newline]
    )[0, inputs["input_ids"].shape[1] :]
    answer = tiny.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert printed == printable_lines(answer).strip() + "\n"


def test_once_as_json_with_shots_system_and_candidates(
    tiny: SimpleNamespace, folder: Path, capfd: pytest.CaptureFixture[str]
):
    arguments = ["chat", "--model", str(tiny.export), "--json", "--max-new-tokens", "4"]
    arguments += ["--shot", "cat.png => a dax", "--system", "Be brief."]
    assert main([*arguments, "--once", "two\\ words.png", "--seed", "3"]) == 0
    value = json.loads(capfd.readouterr().out)
    assert value["settings"]["seed"] == 3 and value["stats"]["num_pictures"] == 2
    assert main([*arguments, "--once", "cat.png", "--rank", "a dax | a wug"]) == 0
    value = json.loads(capfd.readouterr().out)
    assert [c["text"] for c in value["candidates"]] == ["a dax", "a wug"]
    assert sum(c["share"] for c in value["candidates"]) == pytest.approx(1)
    best = max(value["candidates"], key=lambda candidate: candidate["nats"])
    assert value["answer"] == best["text"]


def test_a_word_that_only_looks_like_a_picture_is_noted_on_stderr(
    tiny: SimpleNamespace, folder: Path, capfd: pytest.CaptureFixture[str]
):
    arguments = ["--model", str(tiny.export), "--max-new-tokens", "4", "--once"]
    assert main(["chat", *arguments, "dog.png or cat.png?"]) == 0
    printed = capfd.readouterr()
    assert "dog.png: no such file; taken as text\n" in printed.err
    assert main(["chat", *arguments, "dog.png or?", "--image", "cat.png"]) == 0
    assert capfd.readouterr().out == printed.out


def test_a_batch_answers_each_line_alone(
    tiny: SimpleNamespace, folder: Path, capfd: pytest.CaptureFixture[str]
):
    lines = [
        "cat.png",
        '{"text": "is it red?", "images": ["cat.png", "two words.png"], "id": 7}',
        "",
        "./gone.png",
        '{"texts": "is it?"}',
        "{broken",
        "cat.png",
    ]
    (folder / "batch.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    arguments = ["chat", "--model", str(tiny.export), "--batch", "batch.txt"]
    assert main([*arguments, "--json", "--max-new-tokens", "6"]) == 2
    printed = capfd.readouterr()
    values = [json.loads(line) for line in printed.out.splitlines()]
    assert [value["line"] for value in values] == [1, 2, 4, 5, 6, 7]
    assert values[0]["answer"] == values[-1]["answer"]  # whatever stood between them
    assert values[1]["id"] == 7 and values[1]["stats"]["num_pictures"] == 2
    assert [("error" in value) for value in values] == [False, False, True, True, True, False]
    assert "line 4: gone.png: No such file" in printed.err
    assert "key 'texts'" in values[3]["error"] and "not JSON" in values[4]["error"]
    # As text: a line an answer, so that they stand beside their questions.
    assert main([*arguments, "--max-new-tokens", "6"]) == 2
    assert len(capfd.readouterr().out.splitlines()) == 6


def test_what_a_full_context_does_without_a_prompt(
    tiny: SimpleNamespace, folder: Path, capfd: pytest.CaptureFixture[str]
):
    arguments = ["chat", "--model", str(tiny.export), "--max-new-tokens", "100", "--json"]
    long = "the fox " * 28
    assert main([*arguments, "--once", long]) == 2
    assert "make room" in capfd.readouterr().err
    assert main([*arguments, "--once", long, "--when-full", "shorten"]) == 0
    value = json.loads(capfd.readouterr().out)
    left = 256 - value["stats"]["num_prompt"]
    assert value["settings"]["max_new_tokens"] == left < 100


def test_a_transcript_is_asked_again(
    tiny: SimpleNamespace, folder: Path, capfd: pytest.CaptureFixture[str]
):
    lines = [
        "/set temperature 1.5",
        "/set max_new_tokens 6",
        "/shot cat.png => a dax",
        "'two words.png' is it?",
        "/retry",
        "/shot 'two words.png' => a wug",
        "/system Be brief.",
        "the fox",
        "/shots drop 1",
        "/branch other",
        "and then",
        "/save chat.json",
    ]
    run = subprocess.run(
        command("--model", tiny.export), input="\n".join(lines).encode(), capture_output=True
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout.decode().splitlines()
    again = ["chat", "--model", str(tiny.export), "--replay", "chat.json"]
    assert main(again) == 0
    # Each after the shots and the system text that it had, on either branch.
    first, second, third = said[1], said[2], said[3]
    assert capfd.readouterr().out.splitlines() == [
        f"branch main, turn 1: same: {first}",
        f"branch main, turn 2: same: {second}",
        f"branch other, turn 1: same: {first}",
        f"branch other, turn 2: same: {second}",
        f"branch other, turn 3: same: {third}",
    ]
    path = folder / "chat.json"
    value = json.loads(path.read_text())
    value["branches"]["main"]["turns"][0]["answer"]["text"] = "something else"
    path.write_text(json.dumps(value))
    assert main([*again, "--json"]) == 1
    values = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert not values[0]["is_same"] and values[0]["was"] == "something else"
    assert values[2]["is_same"]  # the other branch was not changed
    # And it can be gone on with.
    assert (
        main(["chat", "--model", str(tiny.export), "--transcript", "chat.json", "--once", "so"])
        == 0
    )


def test_a_piped_conversation_survives_bad_paths_and_bytes(tiny: SimpleNamespace, folder: Path):
    """Answers alone on stdout, a line each; what went wrong on stderr."""
    lines = (
        b"/image cat.png\nis it red?\n./gone.png what?\n./bad.png\n/nonsense\n/reset\n\xff\xfe?\n"
    )
    run = subprocess.run(
        command("--model", tiny.export, "--max-new-tokens", 8), input=lines, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.decode().splitlines()) == 3
    noted = [line for line in run.stderr.decode().splitlines() if line]
    assert noted[-4:] == [
        "gone.png: No such file or directory",
        "bad.png: not a picture (20 bytes, first b'not a pi')",
        "No command /nonsense; /help lists them.",
        "A new conversation.",
    ]


def test_where_stdout_is_no_utf8_answers_are_spelt_as_they_can_be(
    tiny: SimpleNamespace, folder: Path
):
    run = subprocess.run(
        command("--model", tiny.export, "--max-new-tokens", 4),
        input="/system Ünïcode ☃\nis it?\n".encode(),
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.isascii() and b"code ???" in run.stderr and run.stdout


def test_mistakes_are_one_line(
    tiny: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
):
    export = str(tiny.export)
    (folder / "huge.json").write_text("{}")
    for arguments, reason in (
        (["--model", "nowhere", "--once", "x"], "nowhere: no model here"),
        (["--model", "nowhere"], "nowhere: no model here"),
        (["--model", export, "--image", "gone.png", "--once", "x"], "gone.png: No such"),
        (["--model", export, "--once", " "], "--once needs a text"),
        (["--model", export, "--once", "x", "--batch", "-"], "--once and --batch: one of them"),
        (["--model", export, "--web", "--once", "x"], "--web and --once: one of them"),
        (["--model", export, "--json"], "--json goes with"),
        (["--model", export, "--rank", "a|b"], "--rank goes with --once"),
        (["--model", export, "--once", "x", "--rank", "a"], "two texts"),
        (["--model", export, "--batch", "gone.txt"], "gone.txt: No such file"),
        (["--model", export, "--replay", "huge.json"], "huge.json: not a transcript"),
        (["--model", export, "--transcript", "gone.json", "--once", "x"], "no such file"),
        (["--model", export, "--replay", "huge.json", "--system", "x"], "leave --system out"),
        (["--model", export, "--temperature", "-1"], "temperature -1.0"),
        (["--model", export, "--beams", "3", "--temperature", "1"], "beams 3 with"),
        (["--model", export, "--shot", "cat.png"], "--shot needs both sides"),
        (["--model", export, "--web", "--port", "99999"], "--port 99999"),
        (["--model", export, "--image", "http://x/y.png", "--once", "x"], "without --allow-urls"),
        (["--model", export, "--once", "red " * 300], "takes 1"),
    ):
        assert main(["chat", *arguments]) == 2, arguments
        printed = capsys.readouterr()
        line = printed.err.strip().splitlines()[-1]
        assert reason in line and line.startswith("mllm: error:"), (arguments, printed.err)
        assert printed.out == ""


def test_a_damaged_export_ends_a_piped_chat_with_its_line(tiny: SimpleNamespace, folder: Path):
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"model_type": "mllm"}')
    run = subprocess.run(command("--model", "broken"), input=b"hello\n", capture_output=True)
    assert run.returncode == 2
    last = run.stderr.decode().splitlines()[-1]
    assert last.startswith("mllm: error: broken: not a whole export")


def test_nothing_of_torch_is_loaded_before_it_is_needed():
    """Start to prompt: the model loads behind it."""
    code = (
        "import sys; import mllm.chat.command, mllm.chat.terminal.typing, "
        "mllm.chat.terminal.commands, mllm.chat.terminal.loading; "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_pictures_from_a_pipe_are_not_waited_for(
    tiny: SimpleNamespace, folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "photo.png").write_bytes(png(9))
    arguments = ["chat", "--model", str(tiny.export), "--once", "x", "--image"]
    assert main([*arguments, "pipe.png"]) == 2
    assert "pipe.png: not a file" in capsys.readouterr().err

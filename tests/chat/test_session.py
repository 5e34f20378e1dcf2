"""Commands of the terminal, line by line, with a real model behind them."""

import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mllm.chat.engine import Engine, Request
from mllm.chat.lines import LineReader
from mllm.chat.sampling import Sampling
from mllm.chat.terminal.commands import COMMANDS, help_lines, respond
from mllm.chat.terminal.session import Session
from mllm.chat.terminal.view import View
from mllm.errors import UserError

Say = Callable[..., list[str]]


@pytest.fixture
def session(engine: Engine, folder: Path) -> Session:
    loading: Any = SimpleNamespace(is_ready=True, get=lambda: engine, check=lambda: None)
    view = View(is_interactive=False)
    return Session(loading, view, LineReader(view.note), Sampling(max_new_tokens=6))


@pytest.fixture
def say(session: Session) -> Say:
    """Types lines; gives what was printed, answers and notes together."""

    def typed(*lines: str) -> list[str]:
        shown = io.StringIO()
        session.view.console.file = shown
        with redirect_stdout(shown):
            for line in lines:
                assert respond(session, line)
        return shown.getvalue().splitlines()

    return typed


def turns(session: Session) -> list[tuple[str, str]]:
    return [
        (session._words(turn.content), turn.answer.text if turn.answer else "")
        for turn in session.conversation.turns
    ]


def test_pictures_stand_where_they_were_typed(session: Session, say: Say):
    say("cat.png and 'two words.png' are what?", "/image cat.png", "the fox")
    words = [text for text, _ in turns(session)]
    assert words == [
        "<cat.png (24 x 24)> and <two words.png (24 x 24)> are what?",
        "<cat.png (24 x 24)>",
        "the fox",
    ]
    assert len(session.engine().encode(session.conversation).pictures) == 3


def test_undo_takes_back_and_edit_asks_again(session: Session, say: Say):
    first = say("cat.png", "is it red?")
    assert [text for _, text in turns(session)] == first
    assert say("/undo") == ["taken back: is it red?"]
    assert say("is it red?") == first[1:]  # as if it had never been asked
    say("/edit is it blue?")
    assert [text for text, _ in turns(session)][1:] == ["is it blue?"]
    # What cannot be asked leaves the turn as it was.
    before = turns(session)
    assert "No such file" in say("/edit ./gone.png")[0]
    assert "needs the new line" in say("/edit")[0]
    assert turns(session) == before
    assert "2 turns there" in say("/undo 3")[0]
    say("/edit /image 'two words.png' is it?")
    assert turns(session)[-1][0] == "<two words.png (24 x 24)> is it?"
    say("/undo 2")
    assert "/undo 1: 0 turns there" in say("/undo")[0]
    for line in ("/retry", "/edit x"):
        assert "the conversation is empty" in say(line)[0]
    assert "a number from 1" in say("/undo " + "9" * 5000)[0]


def test_an_edited_line_starts_as_it_was_and_may_be_given_up(
    session: Session, say: Say, folder: Path
):
    session.choose = lambda question, letters: letters[-1]
    say("/image cat.png is it red?", "/edit")
    assert session.prefill == "/image cat.png is it red?"
    say("/image cat.png is it blue?")
    assert [text for text, _ in turns(session)] == ["<cat.png (24 x 24)> is it blue?"]
    say("/edit", "/tokens", "the fox")  # a command in between: the next line is a turn of its own
    assert len(turns(session)) == 2
    say("/edit", "")
    say("the fox")
    assert len(turns(session)) == 3
    # What cannot be read is to be mended, and still stands for the last turn.
    say("/edit", "./gone.png is it?")
    assert session.prefill == "./gone.png is it?"
    say(f"{folder}/cat.png is it?")  # a path from the root is no command
    assert len(turns(session)) == 3
    assert turns(session)[-1][0] == f"<{folder}/cat.png (24 x 24)> is it?"
    say("/describe", "/edit")
    assert session.prefill == f"/image {folder}/cat.png"


def test_retry_takes_the_next_seed(session: Session, say: Say):
    say("/set temperature 2", "/set seed 5", "cat.png is it?")
    said = [session.conversation.turns[-1].answer]
    for attempt in (1, 2):
        say("/retry")
        assert len(session.conversation.turns) == 1
        said.append(session.conversation.turns[-1].answer)
        assert session.conversation.turns[-1].attempt == attempt
    assert [answer.settings["seed"] for answer in said if answer] == [5, 6, 7]
    assert len({answer.text for answer in said if answer}) > 1
    assert "same answer" in say("/set temperature 0", "/retry")[0]


def test_branches_go_their_own_ways(session: Session, say: Say):
    say("cat.png", "/branch other", "the fox", "/shot cat.png => a dax")
    assert len(turns(session)) == 2
    assert say("/branch main") == ["branch main: 1 turn"]
    assert len(turns(session)) == 1 and not session.conversation.shots
    assert say("/branches") == ["* main: 1 turn, 0 shots", "  other: 2 turns, 1 shot"]
    assert say("/branch") == ["a copy, branch branch2: 1 turn"]
    assert "one word" in say("/branch a b")[0]


def test_shots_come_before_and_change_the_answer(session: Session, say: Say, engine: Engine):
    assert say("/shots")[0].startswith("no shots")
    say("/shot cat.png => a dax", "/shot 'two words.png' what is it? => a wug")
    assert say("/shots") == [
        "1: <cat.png (24 x 24)> => a dax",
        "2: <two words.png (24 x 24)> what is it? => a wug",
    ]
    say("cat.png")
    (inputs,) = [engine.encode(session.conversation)]
    decoded = engine.processor.tokenizer.decode(inputs.token_ids, skip_special_tokens=True)
    assert decoded.index("a dax") < decoded.index("a wug")
    say("/shots drop 1")
    assert [shot.answer for shot in session.conversation.shots] == ["a wug"]
    assert "1 shot there" in say("/shots drop 2")[0]
    say("/shots clear")
    assert not session.conversation.shots
    assert "/shot needs both sides" in say("/shot cat.png")[0]


def test_rank_prints_shares_of_the_last_turns_answer(session: Session, say: Say, engine: Engine):
    say("cat.png what colour is it?")
    lines = [line.split("\t") for line in say("/rank red | blue | no")]
    assert sorted(name for _, _, name in lines) == ["blue", "no", "red"]
    assert sum(float(share) for share, _, _ in lines) == pytest.approx(1, abs=1e-5)
    assert [float(share) for share, _, _ in lines] == sorted(
        (float(share) for share, _, _ in lines), reverse=True
    )
    # Asked beside the conversation: the same scores, and nothing is added.
    say("/reset")
    assert [
        line.split("\t") for line in say("/rank cat.png what colour is it? => red | blue | no")
    ] == lines
    assert not session.conversation.turns
    assert "there is none" in say("/rank a | b")[0]
    assert "needs candidates" in say("/rank a")[0]
    assert "needs candidates" in say("/rank => a | b")[0]
    assert "positions" in say("/rank " + "the fox " * 200 + "=> a | b")[0]


def test_describe_takes_the_last_picture(session: Session, say: Say):
    assert "no picture yet" in say("/describe")[0]
    alone = say("cat.png")
    say("/reset", "/shot cat.png => x", "/shots clear", "/shot cat.png => x")
    say("/shots clear")
    assert say("/describe cat.png") == alone
    say("the fox", "/describe")
    assert turns(session)[-1][0] == "<cat.png (24 x 24)>"


def test_settings_are_checked_as_they_are_set(session: Session, say: Say):
    say("/set temperature 0.7", "/set top_p=0.9", "/set num_beams 1", "/set max_tokens 3")
    assert session.sampling == Sampling(0.7, 0.9, max_new_tokens=3)
    assert say("/set")[0] == "temperature 0.7"
    for line, reason in (
        ("/set temperature hot", "temperature 'hot': 0"),
        ("/set temperature nan", "temperature nan"),
        ("/set temperature 1e-40", "from 0.01 to 100"),
        ("/set top_p 0", "top_p 0.0: more than 0"),
        ("/set beams 4", "beams 4 with temperature 0.7"),
        ("/set max_new_tokens 0", "at least 1"),
        ("/set speed 3", "no setting 'speed'"),
        ("/set seed", "needs a value"),
        ("/set when_full never", "one of ask"),
    ):
        assert reason in say(line)[0]
    assert session.sampling == Sampling(0.7, 0.9, max_new_tokens=3)


def test_the_meter_is_that_of_the_prompt(session: Session, say: Say, engine: Engine):
    say("/system Be brief.", "/shot cat.png => a dax", "cat.png is it red?")
    lines = say("/tokens")
    used, left = map(int, re.findall(r"\d+", lines[0])[0:3:2])
    assert (used, left) == (len(engine.encode(session.conversation).token_ids), 256 - used)
    parts = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    assert parts["shots"] + parts["system"] + parts["turns"] + 1 == used
    assert parts["pictures"] + parts["text"] == used


def filled(session: Session, say: Say) -> None:
    say("/set max_new_tokens 6", "/shot cat.png => a dax")
    room = 256 - len(session.engine().encode(session.conversation).token_ids)
    for _ in range(3):
        say("the fox " * (room // 30))


def test_a_full_context_is_never_cut_silently(session: Session, say: Say):
    filled(session, say)
    before = turns(session)
    (line,) = say("the quick brown fox " * 8)
    assert re.search(r"takes \d+ positions .* the model has 256; /drop 2, /shots clear", line)
    assert turns(session) == before and session.conversation.num_dropped == 0
    # Chosen beforehand, or by the user when asked.
    say("/set when_full drop")
    lines = say("the quick brown fox " * 8)
    assert lines[0] == "2 of 4 turns left out now"
    assert session.conversation.num_dropped == 2 and len(session.conversation.shots) == 1
    assert len(session.conversation.turns) == 4
    assert say("/show")[1].startswith(" (you) the fox")
    assert say("/drop 1") == ["3 of 4 turns left out now"]
    assert "/drop 2: 1 turn there" in say("/drop 2")[0]
    assert say("/drop 0") == ["0 of 4 turns left out now"]


@pytest.mark.parametrize("letter", ["d", "s", "c"])
def test_a_user_chooses_what_gives_way(session: Session, say: Say, letter: str):
    filled(session, say)
    asked: list[tuple[str, str]] = []

    def choose(question: str, letters: str) -> str:
        asked.append((question, letters))
        return letter

    session.choose = choose
    session.sampling = replace(session.sampling, max_new_tokens=60)
    lines = say("the fox?")
    ((question, letters),) = asked
    assert "[d]rop the oldest" in question and "[s]horten this answer to" in question
    assert letters == "dsc"
    conversation = session.conversation
    if letter == "d":
        assert conversation.num_dropped > 0
    elif letter == "s":
        (left,) = re.findall(r"to (\d+) tokens", question)
        answer = conversation.turns[-1].answer
        assert answer and answer.settings["max_new_tokens"] == int(left)
        assert session.sampling.max_new_tokens == 60
    else:
        assert len(conversation.turns) == 3 and "positions" in lines[-1]


def test_saved_and_loaded_it_goes_on_alike(session: Session, say: Say, folder: Path):
    say("/set temperature 1.5", "/shot cat.png => a dax", "/system Be brief.")
    say("'two words.png' is it?", "/branch other", "the fox", "/save 'my chat.json'")
    prompt = session.engine().encode(session.conversation).token_ids
    expected = say("and then")
    say("/reset", "/set temperature 0")
    (folder / "two words.png").unlink()  # the transcript has its pictures inside
    assert say("/load my\\ chat.json") == ["2 turns, 1 shot; /show prints them"]
    assert session.engine().encode(session.conversation).token_ids == prompt
    assert say("and then") == expected
    assert session.branches.current == "other" and len(session.branches.by_name) == 2
    shown = say("/show")
    assert shown[0] == "system Be brief." and shown[1].startswith("  shot <cat.png (24 x 24)>")
    value = json.loads((folder / "my chat.json").read_text())
    value["model"]["fingerprint"] = "0" * 16
    (folder / "other.json").write_text(json.dumps(value))
    assert "another model answered in it" in say("/load other.json")[1]
    assert "no such file" in say("/load gone.json")[0]
    assert "/load needs a file" in say("/load")[0]
    assert "exists and is no transcript" in say("/save cat.png")[0]
    (folder / "shut").mkdir()
    assert "a folder" in say("/save shut")[0]


def test_hostile_names_and_texts_command_nothing(session: Session, say: Say, folder: Path):
    """Escape sequences in file names, in typed lines and in what comes from a transcript."""
    name = "a\x1b]0;owned\x07\x1b[2J.png"
    (folder / name).write_bytes((folder / "cat.png").read_bytes())
    lines = say(
        f"'./{name}' is it\x1b[31m red?",
        f"./{name}gone.png",
        f"/{name}",
        "/system \x1b[5mblink\u202e",
        f"/shot './{name}' => \x1b[2Ja dax",
        "/shots",
        "/show",
        "/branch \x1b[2J",
        "/branches",
        "/undo",
    )
    assert lines and not [
        line for line in lines if re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", line)
    ]


def test_every_command_has_its_line_of_help_and_its_mistakes(say: Say):
    shown = "\n".join(help_lines())
    assert all(name in shown for name in COMMANDS)
    assert say("/help") == help_lines()
    assert say("/nonsense") == ["No command /nonsense; /help lists them."]
    assert "needs a path" in say("/image")[0]
    assert "a number from 1" in say("/undo many")[0]
    assert "0 turns there" in say("/drop")[0]
    assert "on or /stats off" in say("/stats maybe")[0]


def test_stats_tell_what_was_known(session: Session, say: Say):
    say("/stats on", "cat.png")
    line = say("is it red?")[-1]
    reused, total = map(int, re.findall(r"(\d+) of (\d+) positions", line)[0])
    assert 0 < reused < total and "1 of 1 pictures" in line


@pytest.mark.parametrize(
    "error, told",
    [
        (UserError("no luck"), "no luck"),
        (RuntimeError("out of memory\nmore"), "the model failed (out of memory)"),
        (MemoryError(), "the model failed (MemoryError)"),
        (OSError(28, "No space left on device"), "the disk: No space left"),
    ],
)
def test_a_failure_of_the_model_is_not_a_turn(
    session: Session, say: Say, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
):
    filled(session, say)
    before = turns(session)

    def fails(request: Request) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(session.engine(), "answer", fails)
        (line,) = say("the fox")
        assert told in line
        say("/set when_full drop", "/set max_new_tokens 60")
        said = say("the fox")
        assert told in said[-1] and "left out now" in said[0]
    assert turns(session) == before
    assert session.conversation.num_dropped == 0  # what was chosen for an answer that never came


def test_nobody_to_read_the_answers_ends_it(session: Session, monkeypatch: pytest.MonkeyPatch):
    def fails(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(session.view, "piece", fails)
    with pytest.raises(BrokenPipeError):
        respond(session, "cat.png")


def test_an_answer_cut_off_by_an_error_is_kept_as_stopped(
    session: Session, say: Say, monkeypatch: pytest.MonkeyPatch
):
    def breaks(request: Request) -> Any:
        yield "a red"
        raise RuntimeError("gone")

    monkeypatch.setattr(session.engine(), "answer", breaks)
    lines = say("cat.png")
    assert lines[0] == "a red" and "gone" in lines[-1]
    answer = session.conversation.turns[-1].answer
    assert answer and answer.text == "a red" and answer.is_stopped


def test_mistakes_are_told_before_the_model_is_there(session: Session, say: Say):
    def wait() -> None:
        pytest.fail("the model was waited for")

    session.loading.get = wait  # type: ignore[method-assign, assignment]
    assert say("/nonsense") == ["No command /nonsense; /help lists them."]
    assert "No such file" in say("./gone.png")[0]
    say("/shot cat.png => a dax", "/set seed 3", "/branch b", "/system x")


def test_pictures_of_the_command_line_begin_the_first_turn(session: Session, say: Say):
    session.held = [session.reader.given_picture("cat.png")]
    say("./gone.png")
    assert session.held  # kept for a line that can be asked
    say("is it red?", "the fox")
    assert [text for text, _ in turns(session)] == ["<cat.png (24 x 24)> is it red?", "the fox"]

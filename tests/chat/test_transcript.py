"""Transcripts: what is loaded is what was saved, and a file from somebody else is only data."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.chat.conversation import Answer, Branches, Conversation, Shot, Turn
from mllm.chat.pictures import picture_of
from mllm.chat.sampling import Sampling
from mllm.chat.transcript import Transcript, from_json, load, save, to_json
from mllm.errors import UserError
from tests.hf.tiny import png

PICTURES = [picture_of(png(seed), f"/home/someone/{seed}.png") for seed in range(3)]
texts = st.text(max_size=12)
contents = st.lists(st.one_of(texts, st.sampled_from(PICTURES)), max_size=3)
answers = st.builds(Answer, texts, st.just(Sampling(0.5, seed=3).values), st.booleans(), st.just(0))
conversations = st.builds(
    Conversation,
    texts,
    st.lists(st.builds(Shot, contents, texts), max_size=2),
    st.lists(
        st.builds(Turn, contents, st.none() | answers, st.just(""), st.integers(0, 3)), max_size=3
    ),
)
names = st.text(min_size=1, max_size=5)


@settings(deadline=None)  # pictures are decoded
@given(st.dictionaries(names, conversations, min_size=1, max_size=3), st.data())
def test_what_is_loaded_is_what_was_saved(by_name: dict[str, Conversation], data: Any):
    branches = Branches(by_name, data.draw(st.sampled_from(sorted(by_name))))
    made = Transcript(branches=branches, settings=Sampling(1.5, 0.9), model={"name": "x"})
    read = from_json(json.dumps(to_json(made)), "chat.json")
    assert read.branches == branches and read.settings == made.settings


def saved(folder: Path) -> dict[str, Any]:
    turns = [Turn([PICTURES[0], "is it?"], Answer("red", Sampling().values), "line")]
    branches = Branches({"main": Conversation("", [], turns)})
    path = save(Transcript(branches=branches, settings=Sampling()), folder / "chat.json")
    return json.loads(path.read_text())


def test_pictures_are_inside_and_paths_are_not(tmp_path: Path):
    value = saved(tmp_path)
    assert "/home/someone" not in json.dumps(value)
    ((digest, entry),) = value["pictures"].items()
    assert hashlib.sha256(base64.b64decode(entry["data"])).hexdigest() == digest
    assert entry["name"] == "0.png"
    assert list(value)[-1] == "pictures"  # words can be read before them


def changed(value: dict[str, Any], place: str, new: Any) -> dict[str, Any]:
    *path, last = place.split("/")
    here: Any = value
    for key in path:
        here = here[int(key) if isinstance(here, list) else key]
    here[int(last) if isinstance(here, list) else last] = new
    return value


@pytest.mark.parametrize(
    "place, new, reason",
    [
        ("format", "other", "not a transcript"),
        ("version", 2, "version"),
        ("current", "gone", "no branch 'gone'"),
        ("branches", {}, "branches"),
        ("branches/main/turns/0/content/0", {"type": "image", "path": "/etc/passwd"}, "sha256"),
        ("branches/main/turns/0/content/0", {"type": "image", "sha256": "../x"}, "not in the file"),
        ("branches/main/turns/0/content", "text", "content"),
        ("branches/main/num_dropped", 2, "more than its turns"),
        ("branches/main/turns/0/attempt", -1, "attempt"),
        ("settings/temperature", -1, "temperature"),
        ("settings/speed", 2, "no setting 'speed'"),
        ("settings/beams", 1.5, "beams"),
        ("branches/main/shots", [0], "shot 0 is not in the file"),
        ("branches/main/turns/0/answer/shots", [-1], "shot -1 is not in the file"),
        ("pictures/X/data", "!!", "not base64"),
        ("pictures/X/data", base64.b64encode(png(7)).decode(), "another hash"),
        ("extra", 1, "extra"),
    ],
)
def test_a_file_that_was_changed_is_one_line(tmp_path: Path, place: str, new: Any, reason: str):
    value = saved(tmp_path)
    place = place.replace("X", next(iter(value["pictures"])))
    (tmp_path / "chat.json").write_text(json.dumps(changed(value, place, new)))
    with pytest.raises(UserError, match=reason) as caught:
        load(tmp_path / "chat.json")
    assert "\n" not in str(caught.value) and "chat.json" in str(caught.value)


def test_pictures_of_a_file_are_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path)
    monkeypatch.setattr("mllm.chat.transcript.MAX_PIXELS", 500)
    with pytest.raises(UserError, match="more than 500 pixels in all"):
        load(tmp_path / "chat.json")


def test_a_picture_that_is_none_is_refused_though_its_hash_is_right(tmp_path: Path):
    value, data = saved(tmp_path), b"<svg/>"
    digest = hashlib.sha256(data).hexdigest()
    value["pictures"][digest] = {"name": "\x1b[2J", "data": base64.b64encode(data).decode()}
    (tmp_path / "chat.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="not a picture"):
        load(tmp_path / "chat.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, "\xff", '{"format": 1}'])
def test_what_is_no_transcript_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"x\.json: not"):
        load(path)


def test_nothing_else_is_overwritten(tmp_path: Path):
    saved(tmp_path)
    saved(tmp_path)  # its own file is
    (tmp_path / "notes.txt").write_text("mine")
    made = Transcript(branches=Branches(), settings=Sampling())
    with pytest.raises(UserError, match="exists and is no transcript"):
        save(made, tmp_path / "notes.txt")
    with pytest.raises(UserError, match="a folder"):
        save(made, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "gone.json")
    assert (tmp_path / "notes.txt").read_text() == "mine"

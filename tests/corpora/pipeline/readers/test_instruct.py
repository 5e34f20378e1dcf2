"""Instruction data: roles as the source has them, and only the assistant's words scored."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.document import Turn, from_members, to_members
from corpora.pipeline.record import from_record, to_record
from mllm.errors import UserError

from .reading import coded, content, image, name_of, read

RED, GREEN = image("red"), image("green", "JPEG")


def scored(document):
    return [s.text for s in document.segments if getattr(s, "is_scored", False)]


def one(path, kind="instruct"):
    documents, log = read(kind, path)
    assert not log.dropped
    (document,) = documents
    assert from_members("", to_members(document)) == document
    assert from_record(to_record(document)) == document
    return document


def test_alpaca(tmp_path):
    path = tmp_path / "alpaca_data.json"
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "Hi."},
        {"instruction": "Say hi.", "input": "<noinput>", "output": "Hi."},
        {"instruction": "Nothing.", "input": "", "output": ""},
    ]
    path.write_text(json.dumps(rows, indent=4))
    documents, log = read("instruct", path)
    assert [content(d) for d in documents] == [
        ["Add.\n1 2", " 3"],
        ["Say hi.", " Hi."],
        ["Say hi.", " Hi."],
    ]
    assert documents[0].turns == (Turn("user", 1), Turn("assistant", 1))
    assert scored(documents[0]) == [" 3"]
    assert log.dropped == {"no output": 1}


def test_unnatural_instructions_core(tmp_path):
    path = tmp_path / "core_data.jsonl"
    row = {
        "instruction": "Classify.",
        "instances": [
            {"instruction_with_input": "...", "input": "good", "constraints": "n", "output": "pos"},
            {"input": "bad", "output": "neg"},
        ],
    }
    path.write_text(json.dumps(row) + "\n")
    assert name_of("instruct", path) == "unnatural"
    documents, _ = read("instruct", path)
    assert [content(d) for d in documents] == [
        ["Classify.\ngood", " pos"],
        ["Classify.\nbad", " neg"],
    ]


def test_flan_in_parquet(tmp_path):
    table = pa.table({"inputs": ["Q?"], "targets": ["A"], "task_source": ["Flan2021"]})
    pq.write_table(table, tmp_path / "a.parquet")
    document = one(tmp_path)
    assert content(document) == ["Q?", " A"]
    assert document.meta == {"task_source": "Flan2021"}


def test_sharegpt(tmp_path):
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hello\n"},
        {"from": "gpt", "value": "Hi.\n\nHow are you?"},
        {"from": "human", "value": "Fine."},
        {"from": "gpt", "value": "Good."},
    ]
    path = tmp_path / "sg.json"
    path.write_text(json.dumps([{"id": "x", "conversations": turns}]))
    document = one(path)
    assert content(document) == [
        "Be kind.",
        "\nHello",
        " Hi.\n\nHow are you?",
        "\nFine.",
        " Good.",
    ]
    roles = [turn.role for turn in document.turns]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert scored(document) == [" Hi.\n\nHow are you?", " Good."]
    assert document.meta == {"id": "x"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("<image>\nWhat?", [RED, "What?"]),
        ("What?\n<image>", ["What?", RED]),
        ("Look: <image> what?", ["Look:", RED, "what?"]),
        ("What?", [RED, "What?"]),
    ],
)
def test_llava_places_the_picture_where_its_mark_stands(tmp_path, asked, expected):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/1.png").write_bytes(RED)
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "A dog."}]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"id": 1, "image": "coco/1.png", "conversations": turns}]))
    document = one(path)
    assert content(document) == [*expected, " A dog."]
    assert document.turns == (Turn("user", len(expected)), Turn("assistant", 1))
    assert scored(document) == [" A dog."]


def test_llava_with_wrong_marks_or_pictures_is_counted(tmp_path):
    (tmp_path / "1.png").write_bytes(RED)
    (tmp_path / "2.jpg").write_bytes(GREEN)
    answer = {"from": "gpt", "value": "Yes."}

    def row(text, *names):
        return {"image": list(names), "conversations": [{"from": "human", "value": text}, answer]}

    path = tmp_path / "a.json"
    rows = [
        row("<image> and <image>", "1.png", "2.jpg"),
        row("<image> and <image>", "1.png"),
        row("<image>", "gone.png"),
        {"conversations": [answer | {"from": "narrator"}]},
        {"conversations": [{"from": "human", "value": "no answer"}]},
        {"conversations": "x"},
        {"conversations": [{"from": "human"}]},
        {"conversations": [{"from": "human", "value": "In HTML, what is <image>?"}, answer]},
    ]
    path.write_text(json.dumps(rows))
    documents, log = read("instruct", path)
    assert [content(d) for d in documents] == [
        [RED, "and", GREEN, " Yes."],
        ["In HTML, what is <image>?", " Yes."],
    ]
    assert log.dropped == {
        "marks and pictures differ in number": 1,
        "picture missing": 1,
        "unknown role": 1,
        "no answer": 1,
        "conversations is no list": 1,
        "a turn lacks from or value": 1,
    }


def test_openai_messages_with_parts(tmp_path):
    url = {"url": f"data:image/png;base64,{coded(RED)}"}
    messages = [
        {"role": "system", "content": "Short answers."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is"},
                {"type": "image_url", "image_url": url},
                {"type": "text", "text": "this?"},
            ],
        },
        {"role": "assistant", "content": "Red."},
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    document = one(path)
    assert content(document) == ["Short answers.", "\nWhat is", RED, "this?", " Red."]
    assert document.turns == (Turn("system", 1), Turn("user", 3), Turn("assistant", 1))


def test_a_picture_on_the_network_is_not_fetched(tmp_path):
    parts = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert read("instruct", tmp_path)[1].dropped == {"picture is not local": 1}


def test_unknown_columns_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(UserError, match="columns prompt, completion; no known format of instruct"):
        read("instruct", tmp_path)
    with pytest.raises(UserError, match="no columns inputs and targets or input and target"):
        read("instruct", tmp_path, forced="flan")

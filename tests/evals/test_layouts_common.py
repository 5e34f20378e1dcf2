"""What every official layout must stand or refuse, from miniatures of each."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.layouts.files import by_id, json_records, read_csv, read_json, read_jsonl
from evals.layouts.images import existing_images
from mllm.errors import UserError
from tests.evals.miniatures import LAYOUTS

PARTS = ("evaluation", "training")


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path):
    """(folder, load) of each layout."""
    make, load = LAYOUTS[request.param]
    make(tmp_path)
    return tmp_path, load


def data_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.suffix in (".json", ".jsonl", ".csv")]


def test_both_parts_are_there_apart_and_with_their_pictures(layout):
    folder, load = layout
    evaluation, training = (load(folder, part) for part in PARTS)
    for records in (evaluation, training):
        assert records and existing_images(records) == (records, 0)
    assert not set(evaluation) & set(training)


def test_a_byte_order_mark_and_crlf_change_nothing(layout):
    folder, load = layout
    before = [load(folder, part) for part in PARTS]
    for path in data_files(folder):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            text = json.dumps(json.loads(text), indent=1)  # lines to end
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [load(folder, part) for part in PARTS] == before


def test_integer_ids_may_be_strings(layout):
    folder, load = layout
    before = [load(folder, part) for part in PARTS]
    for path in data_files(folder):
        if path.suffix != ".csv":
            path.write_text(_ids_as_strings(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert [load(folder, part) for part in PARTS] == before


def _ids_as_strings(text: str) -> str:
    def respell(found: dict) -> dict:
        ids = {"id", "question_id", "image_id", "cocoid"}
        return {k: str(v) if k in ids and type(v) is int else v for k, v in found.items()}

    lines = text.splitlines() if "\n" in text else [text]
    return "\n".join(json.dumps(json.loads(line, object_hook=respell)) for line in lines)


def test_missing_pictures_are_counted_and_three_are_named(layout):
    folder, load = layout
    records = load(folder, "evaluation")
    first = records[0].image_path
    first.unlink()
    lost = [record for record in records if record.image_path == first]
    if len(lost) == len(records):
        pytest.fail("the miniature needs two pictures")
    with pytest.raises(UserError, match=rf"1 of \d+ pictures are missing .*{first.name}.*skip"):
        existing_images(records)
    kept, num_missing = existing_images(records, skip_missing=True)
    assert (len(kept), num_missing) == (len(records) - len(lost), 1)


def test_no_picture_at_all_is_an_error_even_when_some_may_miss(layout):
    folder, load = layout
    records = load(folder, "evaluation")
    for record in records:
        record.image_path.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"pictures are missing"):
        existing_images(records, skip_missing=True)


def test_a_missing_file_is_named_with_the_mend(layout):
    folder, load = layout
    for path in data_files(folder):
        text = path.read_bytes()
        path.unlink()
        errors = []
        for part in PARTS:
            try:
                load(folder, part)
            except UserError as error:
                errors.append(str(error))
        assert errors, path
        assert all("unpack" in e and "\n" not in e for e in errors)
        path.write_bytes(text)


def test_half_a_file_is_named(layout):
    folder, load = layout
    for path in data_files(folder):
        if path.suffix == ".csv":
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2 - 5])  # not at a line's end
        with pytest.raises(UserError, match=path.name):
            for part in PARTS:
                load(folder, part)
        path.write_bytes(whole)


def test_a_renamed_key_is_named(layout):
    """Keys that loaders need, renamed in turn: an error that names file and key, or no use."""
    folder, load = layout
    before = [load(folder, part) for part in PARTS]
    refused = 0
    for path in data_files(folder):
        whole = path.read_text(encoding="utf-8")
        for key in ("answers", "question", "question_id", "image_id", "image", "img", "split"):
            renamed = whole.replace(f'"{key}"', f'"{key}_"')
            renamed = renamed.replace("question,", "question_,") if key == "question" else renamed
            if renamed == whole:
                continue
            path.write_text(renamed, encoding="utf-8")
            try:
                assert [load(folder, part) for part in PARTS] == before or key == "answers"
            except UserError as error:
                assert key in str(error) and path.name in str(error) and "\n" not in str(error)
                refused += 1
            path.write_text(whole, encoding="utf-8")
    assert refused > 0


def test_a_wrong_type_names_file_record_key_and_value(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"rows": [{"id": 1, "text": "a"}, {"id": true, "text": 5}]}')
    second = list(json_records(path, read_json(path), "rows"))[1]
    with pytest.raises(UserError, match=r'a\.json: rows record 2: "text" is 5, must be a string'):
        second.text("text")
    with pytest.raises(UserError, match=r'"id" is true, must be an integer or a string'):
        second.identifier("id")


def test_a_doubled_id_names_both_records(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n\n{"id": "1"}\n')
    with pytest.raises(UserError, match=r'line 3: "id" 1 was already in line 1'):
        by_id(read_jsonl(path), "id")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\xff\xfe{", "line 1: not UTF-8"),
        (b'{\n"a": [1,\n2', "line 3: not JSON"),
        (b"[1]", "record 1: is 1, must be an object"),
        (b'{"a": []}', "must be a list"),
    ],
)
def test_what_is_no_list_of_objects_is_said(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(json_records(path, read_json(path)))


def test_a_csv_with_renamed_columns_or_short_rows_is_refused(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("id,prob\n1,2\n")
    with pytest.raises(UserError, match=r"line 1: no column 'proba' \(found id, prob\)"):
        list(read_csv(path, ("id", "proba")))
    path.write_text("id,proba\n1,0.5\n2\n")
    with pytest.raises(UserError, match="line 3: has not 2 fields"):
        list(read_csv(path, ("id", "proba")))


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=1), ending=st.sampled_from(["\n", "\r\n"]))
def test_jsonl_gives_back_any_strings(tmp_path_factory, texts: list[str], ending: str):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts if t.isprintable()]
    lines += [json.dumps({"text": t}) for t in texts if not t.isprintable()]
    path.write_bytes("".join(line + ending for line in lines).encode())
    expected = sorted(texts)
    assert sorted(record.text("text") for record in read_jsonl(path)) == expected

"""Documents that hold parts of evaluation files go, and no others."""

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.pipeline.decontaminate import (
    DecontaminationOptions,
    decontamination_stages,
    decontamination_steps,
)
from corpora.pipeline.evaluation_files import evaluation_files, items
from corpora.pipeline.judge import read_drops
from mllm.errors import UserError
from tests.corpora.pipeline.records import dropped, encoded, record, run_stage, scene

WORDS = [f"{a}{b}" for a in ("ba", "ce", "di", "fo", "gu", "ha") for b in ("n", "lt", "rk", "sp")]
QUESTION = " ".join(WORDS[:20])


def survivors(folder, paths, records, options=None):
    """Ids of the records that decontamination by `paths` leaves."""
    options = options or DecontaminationOptions()
    for stage in decontamination_stages(paths, folder / "work", options):
        run_stage(stage, 1)
    steps = decontamination_steps(folder / "work", folder / "drops", options)
    data = iter(records)
    for step in steps:
        data = step.run(data, 0, 1)
    return [each.id for each in data]


def jsonl(folder: Path, *values) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_thirteen_words_in_common_go_and_twelve_stay(tmp_path):
    path = jsonl(tmp_path, {"question": QUESTION})
    thirteen = "before it " + " ".join(WORDS[4:17]) + " and after"
    twelve = "before it " + " ".join(WORDS[4:16]) + " and after " + " ".join(WORDS[17:20])
    found = survivors(tmp_path, [path], [record("thirteen", thirteen), record("twelve", twelve)])
    assert found == ["twelve"]
    drops = read_drops(tmp_path / "drops" / "evaluation" / "000000.json")
    assert drops["dropped"] == {f"text of {path}": 1}
    assert drops["examples"][f"text of {path}"][0]["match"] == " ".join(WORDS[4:17])


@pytest.mark.parametrize(("ngram", "kept"), [(12, []), (13, ["twelve"])])
def test_the_number_of_words_is_an_option(tmp_path, ngram, kept):
    path = jsonl(tmp_path, {"question": QUESTION})
    twelve = record("twelve", "so " + " ".join(WORDS[:12]))
    assert survivors(tmp_path, [path], [twelve], DecontaminationOptions(ngram=ngram)) == kept


def test_case_punctuation_and_digits_do_not_hide_a_copy(tmp_path):
    path = jsonl(tmp_path, {"question": "In 1989, " + QUESTION})
    disguised = "in 2001 " + ", ".join(WORDS[:16]).upper() + "!"
    assert survivors(tmp_path, [path], [record("a", disguised)]) == []


def test_a_question_with_its_answer_is_found_though_each_is_short(tmp_path):
    path = jsonl(tmp_path, {"question": " ".join(WORDS[:9]) + "?", "answer": " ".join(WORDS[9:14])})
    both = record("both", " ".join(WORDS[:14]))
    question = record("question", " ".join(WORDS[:9]) + " " + " ".join(WORDS[14:]))
    assert survivors(tmp_path, [path], [both, question]) == ["question"]


def test_what_is_too_short_to_search_for_is_counted(tmp_path):
    path = jsonl(tmp_path, "what is this", QUESTION)
    survivors(tmp_path, [path], [])
    (read,) = json.loads((tmp_path / "work" / "evaluation" / "read.json").read_text())
    assert (read["texts"], read["short_texts"], read["ngrams"]) == (2, 1, 8)


def test_a_rescaled_recompressed_evaluation_picture_goes_and_others_stay(tmp_path):
    picture = tmp_path / "held_out.png"
    picture.write_bytes(encoded(scene(1)))
    copies = [
        record("same", "words", encoded(scene(1))),
        record("smaller", encoded(scene(1).resize((70, 70)), "JPEG", quality=50)),
        record("other", encoded(scene(2))),
        record("none", "words"),
        record("broken", b"\x89PNG nothing"),
    ]
    assert survivors(tmp_path, [picture], copies) == ["other", "none", "broken"]
    assert dropped(tmp_path / "drops", "evaluation") == {f"image of {picture}": 2}


@pytest.mark.parametrize(("images", "kept"), [("off", ["same", "smaller"]), ("exact", ["smaller"])])
def test_pictures_are_compared_as_asked(tmp_path, images, kept):
    picture = tmp_path / "held_out.png"
    picture.write_bytes(encoded(scene(1)))
    copies = [
        record("same", encoded(scene(1))),
        record("smaller", encoded(scene(1).resize((70, 70)))),
    ]
    options = DecontaminationOptions(images=images)
    assert survivors(tmp_path, [picture], copies, options) == kept


def every_spelling(folder: Path) -> list[Path]:
    """The same question in every kind of file, each from a foreign writer."""
    (folder / "a.txt").write_text(QUESTION)
    (folder / "b.json").write_text(json.dumps({"annotations": [{"id": 3, "caption": QUESTION}]}))
    (folder / "c.jsonl").write_text(json.dumps([{"deep": [QUESTION]}]) + "\n\n")
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write(json.dumps({"q": QUESTION}))
    with open(folder / "e.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "question"], ["1", QUESTION]])
    (folder / "f.tsv").write_text(f"1\t{QUESTION}\n")
    pq.write_table(pa.table({"question": [QUESTION]}), folder / "g.parquet")
    with tarfile.open(folder / "h.tar", "w") as tar:
        data = QUESTION.encode()
        info = tarfile.TarInfo("000.txt")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return sorted(folder.iterdir())


def test_every_kind_of_file_is_searched_for(tmp_path):
    folder = tmp_path / "sets"
    folder.mkdir()
    paths = every_spelling(folder)
    assert len(paths) == 8
    for number, path in enumerate(paths):
        copy = record("copy", QUESTION), record("clean", " ".join(reversed(WORDS)))
        assert survivors(tmp_path / str(number), [path], copy) == ["clean"], path


def test_pictures_are_read_from_tars_and_parquet(tmp_path):
    one, two = encoded(scene(1)), encoded(scene(2))
    table = pa.table({"image": [{"bytes": one, "path": "1.png"}]})
    pq.write_table(table, tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        info = tarfile.TarInfo("000.png")
        info.size = len(two)
        tar.addfile(info, io.BytesIO(two))
    found = [list(items(path)) for path in evaluation_files([tmp_path])]
    assert [one in found[0], two in found[1]] == [True, True]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl", b'{"a": "b'),
        ("cut.json", b"[1,"),
        ("bytes.txt", b"\xff\xfe\xfa"),
        ("cut.txt.gz", gzip.compress(np.random.default_rng(0).bytes(9000))[:500]),
        ("not.tar", b"no tar " * 200),
        ("not.parquet", b"PAR1 nothing"),
    ],
)
def test_a_broken_evaluation_file_stops_the_import_and_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        list(items(tmp_path / name))


def test_missing_and_unknown_files_are_named_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        decontamination_stages([tmp_path / "nowhere.jsonl"], tmp_path, DecontaminationOptions())
    (tmp_path / "a.docx").touch()
    with pytest.raises(UserError, match=r"a\.docx"):
        decontamination_stages([tmp_path / "a.docx"], tmp_path, DecontaminationOptions())
    with pytest.raises(UserError, match="no evaluation files"):
        decontamination_stages([tmp_path], tmp_path, DecontaminationOptions())


def test_records_pass_unchanged(tmp_path):
    path = jsonl(tmp_path, QUESTION)
    options = DecontaminationOptions()
    for stage in decontamination_stages([path], tmp_path / "work", options):
        run_stage(stage, 1)
    (step,) = decontamination_steps(tmp_path / "work", tmp_path / "drops", options)
    kept = record("a", "some words", encoded(scene(3)), url="https://example.org")
    before = dict(kept.metadata)
    (after,) = step.run(iter([kept]), 0, 1)
    assert after is kept and after.metadata == before

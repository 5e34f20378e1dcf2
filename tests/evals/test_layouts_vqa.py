from dataclasses import replace
from pathlib import Path

import pytest

from evals.layouts import vizwiz
from evals.layouts.vqa import (
    load_okvqa,
    load_textvqa,
    load_vqav2,
    read_annotations,
    read_textvqa,
    read_vqa,
)
from mllm.errors import UserError
from tests.evals.miniatures import (
    okvqa,
    questions_and_annotations,
    textvqa,
    vizwiz_list,
    vizwiz_rewrite,
    vqav2,
    write,
)


def test_questions_and_annotations_are_joined_by_id(tmp_path: Path):
    vqav2(tmp_path)
    records = load_vqav2(tmp_path, "evaluation")
    assert [r.question_id for r in records] == ["421", "422", "431"]  # the questions' order
    first = records[0]
    assert (first.question, first.majority, first.answer_type) == ("is it red?", "yes", "yes/no")
    assert first.answers == ("yes",) * 8 + ("no",) * 2 and first.confidences == ("yes",) * 10
    assert first.image_path == tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    assert load_vqav2(tmp_path, "training")[0].image_path.parent.name == "train2014"


def test_a_test_part_has_questions_alone(tmp_path: Path):
    write(tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json", questions_and_annotations()[0])
    record = load_vqav2(tmp_path, "test")[0]
    assert (record.question_id, record.answers, record.majority) == ("421", (), "")
    with pytest.raises(UserError, match="no test part"):
        load_okvqa(tmp_path, "test")


def test_okvqa_keeps_raw_answers_beside_stems(tmp_path: Path):
    okvqa(tmp_path)
    record = load_okvqa(tmp_path, "evaluation")[2]
    assert record.answers[0] == "dog" and record.raw_answers[0] == "dogs"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda q, a: q["questions"].pop(0),
            r"q\.json: 1 of 3 questions are not in it \(431\)|421",
        ),
        (lambda q, a: a["annotations"].pop(0), r"a\.json: 1 of 3 questions are not in it"),
        (lambda q, a: q["questions"].append(q["questions"][0]), "421 was already in questions"),
        (lambda q, a: a["annotations"][0].update(image_id=7), r'record 1: "image_id" is 7, but 43'),
        (lambda q, a: a["annotations"][0].update(answers=[]), 'record 1: "answers" is empty'),
        (
            lambda q, a: a["annotations"][0]["answers"][4].update(answer=2),
            r'annotations record 1, answers 5: "answer" is 2, must be a string',
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, spoil, message: str):
    asked, annotated = questions_and_annotations()
    spoil(asked, annotated)
    write(tmp_path / "q.json", asked)
    write(tmp_path / "a.json", annotated)
    with pytest.raises(UserError, match=message):
        read_vqa(tmp_path / "q.json", tmp_path / "a.json")


def test_annotations_alone_are_enough_to_score_by(tmp_path: Path):
    write(tmp_path / "a.json", questions_and_annotations()[1])
    records = read_annotations(tmp_path / "a.json")
    assert [(r.question_id, r.question) for r in records] == [("431", ""), ("422", ""), ("421", "")]


def test_textvqa_in_both_formats(tmp_path: Path):
    textvqa(tmp_path)
    first = load_textvqa(tmp_path, "evaluation")[0]
    assert first.image_path == tmp_path / "train_images" / "003abc.jpg"
    assert first.majority == "stop" and first.confidences == ()
    asked, annotated = questions_and_annotations()
    for name in ("train", "val"):
        (tmp_path / f"TextVQA_0.5.1_{name}.json").unlink()
    write(tmp_path / "val_questions_vqa_format.json", asked)
    write(tmp_path / "val_annotations_vqa_format.json", annotated)
    rewritten = load_textvqa(tmp_path, "evaluation")
    assert rewritten[2].image_path == tmp_path / "train_images" / "43.jpg"
    alone = read_textvqa(tmp_path / "val_annotations_vqa_format.json")
    assert {r.question_id for r in alone} == {r.question_id for r in rewritten}


def test_vizwizs_list_and_rewrite_give_the_same_records(tmp_path: Path):
    vizwiz_list(tmp_path / "list")
    vizwiz_rewrite(tmp_path / "rewrite")
    given, rewritten = (
        [replace(r, image_path=r.image_path.relative_to(tmp_path / name)) for r in records]
        for name in ("list", "rewrite")
        for records in [vizwiz.load(tmp_path / name, "evaluation")]
    )
    assert given == rewritten
    record = vizwiz.load(tmp_path / "list", "evaluation")[0]
    assert record.question_id == "VizWiz_val_00000000.jpg" and record.majority == "unanswerable"


def test_vizwizs_test_part_has_no_answers(tmp_path: Path):
    write(tmp_path / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    assert vizwiz.load(tmp_path, "test")[0].answers == ()

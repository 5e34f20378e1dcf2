"""Questions about pictures in VQA's format: VQAv2, OK-VQA, TextVQA.

    DIR/v2_OpenEnded_mscoco_val2014_questions.json   questions
    DIR/v2_mscoco_val2014_annotations.json           their ten answers, in any order
    DIR/val2014/COCO_val2014_000000000042.jpg

TextVQA is read in its own format (`TextVQA_0.5.1_val.json`, `train_images/`) and in VQA's, as
`{train,val}_{questions,annotations}_vqa_format.json`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evals.layouts.files import Record, by_id, find_file, json_records, named, read_json
from evals.layouts.images import Part, image_dir
from mllm.errors import UserError

ImagePath = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class VqaRecord:
    """A question, and what people answered (ten of them, as a rule; none in a test part).

    Args:
        image_id: COCO's number, or a file's name where the data set has no numbers.
        answers: In the file's order.
        confidences: `yes`, `maybe` or `no` to each answer; empty where the file has none.
        raw_answers: As typed, before OK-VQA stemmed them; else empty.
        majority: The commonest answer (VQA's `multiple_choice_answer`).
        answer_type: Such as `yes/no`, `number`, `other`; "" where the file has none.
        question_type: The question's first words, or OK-VQA's category; "" where there is none.
    """

    question_id: str
    image_id: str
    image_path: Path
    question: str
    answers: tuple[str, ...]
    confidences: tuple[str, ...]
    raw_answers: tuple[str, ...]
    majority: str
    answer_type: str
    question_type: str


@dataclass(frozen=True)
class Files:
    """What a part of a data set is called on disk."""

    questions: tuple[str, ...]
    annotations: tuple[str, ...] | None
    subtype: str  # of COCO: the pictures' folder, and a part of their names


VQAV2: dict[Part, Files] = {
    "evaluation": Files(
        ("v2_OpenEnded_mscoco_val2014_questions.json",),
        ("v2_mscoco_val2014_annotations.json",),
        "val2014",
    ),
    "training": Files(
        ("v2_OpenEnded_mscoco_train2014_questions.json",),
        ("v2_mscoco_train2014_annotations.json",),
        "train2014",
    ),
    "test": Files(
        (
            "v2_OpenEnded_mscoco_test2015_questions.json",
            "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        ),
        None,
        "test2015",
    ),
}
OKVQA: dict[Part, Files] = {
    "evaluation": Files(
        ("OpenEnded_mscoco_val2014_questions.json",),
        ("mscoco_val2014_annotations.json",),
        "val2014",
    ),
    "training": Files(
        ("OpenEnded_mscoco_train2014_questions.json",),
        ("mscoco_train2014_annotations.json",),
        "train2014",
    ),
}
TEXTVQA_NAMES: dict[Part, str] = {"evaluation": "val", "training": "train", "test": "test"}


def load_vqav2(folder: Path, part: Part) -> list[VqaRecord]:
    return _load_coco(folder, VQAV2[part], "VQAv2")


def load_okvqa(folder: Path, part: Part) -> list[VqaRecord]:
    if part == "test":
        raise UserError("OK-VQA has no test part; its val2014 is what scores are reported on")
    return _load_coco(folder, OKVQA[part], "OK-VQA")


def load_textvqa(folder: Path, part: Part) -> list[VqaRecord]:
    """TextVQA: pictures of `val` lie in `train_images` too."""
    name = TEXTVQA_NAMES[part]
    names = [f"TextVQA_0.5.1_{name}.json", f"{name}_questions_vqa_format.json"]
    path = find_file(folder, names, "TextVQA")
    images = image_dir(folder, ["test_images"] if part == "test" else ["train_images"])
    if path.name == names[0]:
        return read_textvqa(path, images)
    annotations = None
    if part != "test":
        annotations = find_file(folder, [f"{name}_annotations_vqa_format.json"], "TextVQA")
    return read_vqa(path, annotations, lambda image_id: images / f"{image_id}.jpg")


def _load_coco(folder: Path, files: Files, data_set: str) -> list[VqaRecord]:
    questions = find_file(folder, files.questions, data_set)
    annotations = files.annotations and find_file(folder, files.annotations, data_set)
    return read_vqa(questions, annotations or None, coco_image_path(folder, files.subtype))


def coco_image_path(folder: Path, subtype: str) -> ImagePath:
    def image_path(image_id: str) -> Path:
        return folder / subtype / f"COCO_{subtype}_{image_id:0>12}.jpg"

    return image_path


def read_vqa(
    questions_path: Path, annotations_path: Path | None, image_path: ImagePath = Path
) -> list[VqaRecord]:
    """Questions with their annotations, joined on question_id, in the questions' order.

    Args:
        annotations_path: None where answers are kept back by the data set's server.
        image_path: Gives the picture's path from its id; scoring needs none.
    """
    asked = by_id(
        json_records(questions_path, read_json(questions_path), "questions"), "question_id"
    )
    if annotations_path is None:
        return [_joined(question, None, image_path) for question in asked.values()]
    annotated = _annotations(annotations_path)
    for here, there, path in (
        (asked, annotated, annotations_path),
        (annotated, asked, questions_path),
    ):
        lacking = [question_id for question_id in here if question_id not in there]
        if lacking:
            raise UserError(
                f"{path}: {len(lacking)} of {len(here)} questions are not in it "
                f"({named(lacking)}); both files must be of one split"
            )
    return [_joined(asked[name], annotated[name], image_path) for name in asked]


def read_annotations(path: Path, image_path: ImagePath = Path) -> list[VqaRecord]:
    """An annotation file alone, without its questions' words: enough to score by."""
    return [_joined(record, record, image_path) for record in _annotations(path).values()]


def _annotations(path: Path) -> dict[str, Record]:
    return by_id(json_records(path, read_json(path), "annotations"), "question_id")


def _joined(question: Record, annotation: Record | None, image_path: ImagePath) -> VqaRecord:
    image_id = question.identifier("image_id")
    if annotation is not None and annotation.identifier("image_id") != image_id:
        raise annotation.error(
            f'"image_id" is {annotation.identifier("image_id")}, but {image_id} in '
            f"{question.path}; both files must be of one split"
        )
    answers = annotation.objects("answers") if annotation else []
    if annotation and not answers:
        raise annotation.error('"answers" is empty; without them nothing can be scored')
    texts = tuple(shared(answer, "answer") for answer in answers)
    has_raw = bool(answers) and "raw_answer" in answers[0].fields
    return VqaRecord(
        question_id=question.identifier("question_id"),
        image_id=image_id,
        image_path=image_path(image_id),
        question="" if question is annotation else question.text("question"),
        answers=texts,
        confidences=confidences(answers),
        raw_answers=tuple(shared(answer, "raw_answer") for answer in answers) if has_raw else (),
        majority=_optional(annotation, "multiple_choice_answer") or commonest(texts),
        answer_type=_optional(annotation, "answer_type"),
        question_type=_optional(annotation, "question_type"),
    )


def confidences(answers: list[Record]) -> tuple[str, ...]:
    """Of answers that carry one; some rewrites of data sets leave them out."""
    if not answers or "answer_confidence" not in answers[0].fields:
        return ()
    return tuple(shared(answer, "answer_confidence") for answer in answers)


def _optional(record: Record | None, key: str) -> str:
    return sys.intern(record.text(key)) if record and key in record.fields else ""


def shared(record: Record, key: str) -> str:
    """A text kept once for all records that hold it: millions of answers are some thousand."""
    return sys.intern(record.text(key))


def commonest(answers: tuple[str, ...]) -> str:
    """The answer given most often, the first of equals; "" of none."""
    return max(answers, key=answers.count, default="")


def read_textvqa(path: Path, images: Path = Path()) -> list[VqaRecord]:
    """TextVQA's own file, or the annotations of its rewrite in VQA's format.

    In its own file answers are plain strings. Ids of pictures are hexadecimal names in both.
    """
    value = read_json(path)
    if isinstance(value, dict) and "annotations" in value:
        return read_annotations(path, lambda image_id: images / f"{image_id}.jpg")
    records = []
    for number, row in by_id(json_records(path, value, "data"), "question_id").items():
        image_id = row.identifier("image_id")
        answers = row.get("answers", list) if "answers" in row.fields else []
        if not all(type(answer) is str for answer in answers):
            raise row.error('"answers" must be a list of strings')
        texts = tuple(sys.intern(answer) for answer in answers)
        image_path = images / f"{image_id}.jpg"
        question = row.text("question")
        records.append(
            VqaRecord(
                number, image_id, image_path, question, texts, (), (), commonest(texts), "", ""
            )
        )
    return records

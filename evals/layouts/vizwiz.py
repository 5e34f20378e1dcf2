"""VizWiz: photographs and spoken questions of blind people.

    DIR/val.json                 a list of {"image", "question", "answers", "answer_type", ...}
    DIR/val/VizWiz_val_00000000.jpg

There are no question ids: a picture has one question, so its file name is the id. The rewrite in
VQA's format (`val_questions_vqa_format.json`, with the file name as `image_id`) is read too; its
question ids are set aside for the file name, so that both give the same records.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.layouts.files import Record, by_id, find_file, json_records, read_json
from evals.layouts.images import Part, image_dir
from evals.layouts.vqa import (
    VqaRecord,
    commonest,
    confidences,
    read_annotations,
    read_vqa,
    shared,
)

NAMES: dict[Part, str] = {"evaluation": "val", "training": "train", "test": "test"}
REWRITE = "_questions_vqa_format.json"


def load(folder: Path, part: Part) -> list[VqaRecord]:
    name = NAMES[part]
    path = find_file(folder, [f"{name}.json", f"{name}{REWRITE}"], "VizWiz")
    images = image_dir(folder, [name, f"images/{name}", "images"])
    if not path.name.endswith(REWRITE):
        return read_vizwiz(path, images)
    annotations = None
    if part != "test":
        annotations = find_file(folder, [f"{name}_annotations_vqa_format.json"], "VizWiz")
    return _by_image(read_vqa(path, annotations, lambda image_id: images / image_id))


def read_vizwiz(path: Path, images: Path = Path()) -> list[VqaRecord]:
    """Either form of an annotation file; `images` is the pictures' folder."""
    value: Any = read_json(path)
    if isinstance(value, dict) and "annotations" in value:
        return _by_image(read_annotations(path, lambda image_id: images / image_id))
    rows = by_id(json_records(path, value), "image")
    return [_record(row, images) for row in rows.values()]


def _record(row: Record, images: Path) -> VqaRecord:
    name = row.text("image")
    answers = row.objects("answers") if "answers" in row.fields else []
    texts = tuple(shared(answer, "answer") for answer in answers)
    return VqaRecord(
        question_id=name,
        image_id=name,
        image_path=images / name,
        question=row.text("question"),
        answers=texts,
        confidences=confidences(answers),
        raw_answers=(),
        majority=commonest(texts),
        answer_type=shared(row, "answer_type") if answers else "",
        question_type="",
    )


def _by_image(records: list[VqaRecord]) -> list[VqaRecord]:
    return [replace(record, question_id=record.image_id) for record in records]

"""Every official layout in miniature, as it looks when unpacked. Pictures are empty files."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.layouts import captions, hateful_memes, vizwiz, vqa, websrc

PAGE = """<!DOCTYPE html><html><head><title>Shop</title><style>b {color: red}</style></head>
<body><h1>Red  car</h1><script>var x = "<p>hidden</p>";</script>
<p>Price: 5&nbsp;&lt; 6</p><noscript>no</noscript></body></html>"""


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def karpathy(name: str) -> dict[str, Any]:
    """Four pictures: train, restval, val, test; and a second test picture with six captions."""
    images = []
    for number, split in enumerate(["train", "restval", "val", "test", "test"], start=1):
        sentences = [
            {"raw": f"A dog number {number}, seen {i} times.", "tokens": ["a"], "sentid": i}
            for i in range(6 if number == 5 else 2)
        ]
        image: dict[str, Any] = {"imgid": number, "split": split, "sentences": sentences}
        if name == "coco":
            folder = "train2014" if split == "train" else "val2014"
            image |= {"filepath": folder, "cocoid": number}
            image["filename"] = f"COCO_{folder}_{number:012d}.jpg"
        else:
            image["filename"] = f"{number}000.jpg"
        images.append(image)
    return {"images": images, "dataset": name}


def coco(folder: Path) -> None:
    value = karpathy("coco")
    write(folder / "dataset_coco.json", value)
    for image in value["images"]:
        picture(folder / image["filepath"] / image["filename"])


def flickr30k(folder: Path) -> None:
    value = karpathy("flickr30k")
    write(folder / "dataset_flickr30k.json", value)
    for image in value["images"]:
        picture(folder / "flickr30k-images" / image["filename"])


def coco_annotations() -> dict[str, Any]:
    """What `captions_val2014.json` holds."""
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (3, 1, 2)]
    texts = [(i, f"A cat number {i} on a mat.") for i in (1, 2, 3, 1)]
    annotations = [{"id": n, "image_id": i, "caption": t} for n, (i, t) in enumerate(texts)]
    return {"info": {}, "images": images, "annotations": annotations}


def answers(common: str, others: list[str], with_raw: bool = False) -> list[dict[str, Any]]:
    texts = [common] * (10 - len(others)) + others
    rows: list[dict[str, Any]] = [
        {"answer": text, "answer_confidence": "yes", "answer_id": i}
        for i, text in enumerate(texts, start=1)
    ]
    if with_raw:
        rows = [row | {"raw_answer": row["answer"] + "s"} for row in rows]
    return rows


def questions_and_annotations(with_raw: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Three questions about two pictures; annotations in another order."""
    asked = [(421, 42, "is it red?"), (422, 42, "how many?"), (431, 43, "what is it?")]
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text in asked]
    found = [("yes", ["no", "no"], "yes/no"), ("2", ["3"], "number"), ("dog", ["cat"], "other")]
    annotations = [
        {
            "question_id": question_id,
            "image_id": image_id,
            "question_type": text.split()[0],
            "answer_type": kind,
            "multiple_choice_answer": common,
            "answers": answers(common, others, with_raw),
        }
        for (question_id, image_id, text), (common, others, kind) in zip(asked, found, strict=True)
    ]
    return {"questions": questions, "info": {}}, {"annotations": annotations[::-1], "info": {}}


def vqav2(folder: Path) -> None:
    _vqa(folder, "v2_OpenEnded_mscoco_{}2014_questions.json", "v2_mscoco_{}2014_annotations.json")


def okvqa(folder: Path) -> None:
    names = "OpenEnded_mscoco_{}2014_questions.json", "mscoco_{}2014_annotations.json"
    _vqa(folder, *names, with_raw=True)


def _vqa(folder: Path, questions: str, annotations: str, with_raw: bool = False) -> None:
    for split in ("train", "val"):
        asked, annotated = questions_and_annotations(with_raw)
        write(folder / questions.format(split), asked)
        write(folder / annotations.format(split), annotated)
        for image_id in (42, 43):
            picture(folder / f"{split}2014" / f"COCO_{split}2014_{image_id:012d}.jpg")


def textvqa(folder: Path) -> None:
    for split, numbers in (("train", (1, 2)), ("val", (3, 4))):
        rows = [
            {
                "question_id": number,
                "image_id": f"00{number}abc",
                "question": "what does it say?",
                "answers": ["stop"] * 7 + ["go"] * 3,
                "set_name": split,
            }
            for number in numbers
        ]
        write(folder / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": rows})
    for number in (1, 2, 3, 4):
        picture(folder / "train_images" / f"00{number}abc.jpg")


def vizwiz_rows(split: str) -> list[dict[str, Any]]:
    rows = []
    for number in range(3):
        given = answers("unanswerable", ["dog"] * (number + 1))
        rows.append(
            {
                "image": f"VizWiz_{split}_{number:08d}.jpg",
                "question": "What is this?",
                "answers": [{k: v for k, v in a.items() if k != "answer_id"} for a in given],
                "answer_type": "unanswerable",
                "answerable": 0,
            }
        )
    return rows


def vizwiz_list(folder: Path) -> None:
    for split in ("train", "val"):
        write(folder / "Annotations" / f"{split}.json", vizwiz_rows(split))
        for row in vizwiz_rows(split):
            picture(folder / split / row["image"])


def vizwiz_rewrite(folder: Path) -> None:
    """As OpenFlamingo ships it: VQA's format, with the file name as image_id."""
    for split in ("train", "val"):
        rows = vizwiz_rows(split)
        ids = [{"question_id": n, "image_id": row["image"]} for n, row in enumerate(rows)]
        asked = [i | {"question": row["question"]} for i, row in zip(ids, rows, strict=True)]
        annotated = [
            i | {"answers": row["answers"], "answer_type": row["answer_type"]}
            for i, row in zip(ids, rows, strict=True)
        ]
        write(folder / f"{split}_questions_vqa_format.json", {"questions": asked})
        write(folder / f"{split}_annotations_vqa_format.json", {"annotations": annotated})
        for row in rows:
            picture(folder / split / row["image"])


def memes(folder: Path) -> None:
    for name, first in (("train", 1), ("dev_seen", 1243)):
        lines = [
            {"id": i, "img": f"img/{i:05d}.png", "label": i % 2, "text": "a\u2028b\nc"}
            for i in range(first, first + 6)
        ]
        write(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            picture(folder / line["img"])


def web(folder: Path) -> None:
    sites = {"auto/01": "au01", "auto/02": "au02", "book/11": "bo11"}
    split = {"train": ["au02"], "dev": ["au01", "bo11"], "test": []}
    write(folder / "dataset_split_release.json", split)
    for site, key in sites.items():
        page = f"{key[2:]}00001"
        rows = [
            ["What is it?", f"{key}0000100001", "12", "0", 'A "red" car, new'],
            ["Is it new? Really?", f"{key}0000100002", "-1", "1", "yes"],
        ]
        path = folder / site / "dataset.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [["question", "id", *websrc.COLUMNS[2:]], *rows]
            )
        write(path.parent / "processed_data" / f"{page}.html", PAGE)
        picture(path.parent / "processed_data" / f"{page}.png")


# name: (writes the miniature, loads a part of it)
LAYOUTS: dict[str, tuple[Callable[[Path], None], Callable[[Path, Any], list[Any]]]] = {
    "coco": (coco, captions.load_coco),
    "flickr30k": (flickr30k, captions.load_flickr30k),
    "vqav2": (vqav2, vqa.load_vqav2),
    "okvqa": (okvqa, vqa.load_okvqa),
    "textvqa": (textvqa, vqa.load_textvqa),
    "vizwiz": (vizwiz_list, vizwiz.load),
    "vizwiz_rewrite": (vizwiz_rewrite, vizwiz.load),
    "hateful_memes": (memes, hateful_memes.load),
    "websrc": (web, websrc.load),
}

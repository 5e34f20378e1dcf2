import json
from pathlib import Path

import pytest

from evals.layouts.captions import load_coco, load_flickr30k, read_captions, read_coco
from mllm.errors import UserError
from tests.evals.miniatures import coco, coco_annotations, flickr30k, karpathy, write


def test_karpathys_training_part_has_restval(tmp_path: Path):
    coco(tmp_path)
    assert [r.split for r in load_coco(tmp_path, "training")] == ["train", "restval"]
    evaluation = load_coco(tmp_path, "evaluation")
    assert [(r.image_id, len(r.captions)) for r in evaluation] == [("4", 2), ("5", 6)]
    assert evaluation[0].image_path == tmp_path / "val2014" / "COCO_val2014_000000000004.jpg"
    assert evaluation[0].captions[1] == "A dog number 4, seen 1 times."


def test_flickr30ks_ids_are_the_stems_of_file_names(tmp_path: Path):
    flickr30k(tmp_path)
    (tmp_path / "flickr30k-images").rename(tmp_path / "images")
    first = load_flickr30k(tmp_path, "evaluation")[0]
    assert (first.image_id, first.image_path) == ("4000", tmp_path / "images" / "4000.jpg")


def test_cocos_annotations_in_any_order(tmp_path: Path):
    path = tmp_path / "captions_val2014.json"
    write(path, coco_annotations())
    records = read_coco(path, tmp_path)
    assert [(r.image_id, len(r.captions)) for r in records] == [("3", 1), ("1", 2), ("2", 1)]
    assert records[0].image_path == tmp_path / "val2014" / "COCO_val2014_000000000003.jpg"
    shuffled = coco_annotations()
    shuffled["annotations"].reverse()
    shuffled["images"].sort(key=lambda image: image["id"])
    write(path, shuffled)
    assert {(r.image_id, frozenset(r.captions)) for r in read_captions(path)} == {
        (r.image_id, frozenset(r.captions)) for r in records
    }


def test_2017s_names_lie_in_the_folder_itself(tmp_path: Path):
    value = coco_annotations()
    for image in value["images"]:
        image["file_name"] = f"{image['id']:012d}.jpg"
    write(tmp_path / "a.json", value)
    record = read_coco(tmp_path / "a.json", tmp_path / "val2017")[0]
    assert record.image_path == tmp_path / "val2017" / "000000000003.jpg"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v["annotations"].append({"id": 9, "image_id": 7, "caption": "x"}), "record 5"),
        (lambda v: v["images"].append({"id": 8, "file_name": "x.jpg"}), "1 pictures have no cap"),
        (lambda v: v["images"].append(v["images"][0]), '"id" 3 was already in images record 1'),
        (lambda v: v["annotations"][1].update(caption=None), 'record 2: "caption" is null'),
        (lambda v: v.pop("images"), 'no "images"'),
    ],
)
def test_a_spoilt_annotation_file_is_refused(tmp_path: Path, spoil, message: str):
    value = coco_annotations()
    spoil(value)
    write(tmp_path / "a.json", value)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path / "a.json")


def test_a_split_without_pictures_and_doubled_pictures_are_refused(tmp_path: Path):
    value = karpathy("coco")
    path = tmp_path / "dataset_coco.json"
    for image in value["images"]:
        image["split"] = "train"
    write(path, value)
    with pytest.raises(UserError, match="no picture of split test"):
        load_coco(tmp_path, "evaluation")
    value["images"].append(value["images"][0])
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="1 picture ids occur twice: 1"):
        load_coco(tmp_path, "training")


def test_a_picture_without_captions_is_refused(tmp_path: Path):
    value = karpathy("coco")
    value["images"][3]["sentences"] = []
    write(tmp_path / "dataset_coco.json", value)
    with pytest.raises(UserError, match=r'images record 4: "sentences" is empty'):
        load_coco(tmp_path, "evaluation")

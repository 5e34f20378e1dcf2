"""Captions: COCO's annotation files, and Karpathy's splits of COCO and Flickr30k.

    DIR/dataset_coco.json        DIR/dataset_flickr30k.json
    DIR/train2014/*.jpg          DIR/flickr30k-images/*.jpg
    DIR/val2014/*.jpg

Karpathy's `restval` belongs to training: 113,287 pictures with `train`.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evals.layouts.files import Record, by_id, find_file, json_records, named, read_json
from evals.layouts.images import Part, image_dir
from mllm.errors import UserError

KARPATHY_SPLITS = {
    "evaluation": ("test",),
    "test": ("test",),
    "training": ("train", "restval"),
}
COCO_FOLDERS = ("train2014", "val2014", "test2014", "train2017", "val2017")
FLICKR30K_FOLDERS = ("flickr30k-images", "flickr30k_images", "images")


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """A picture with its captions, one or more, in the file's order.

    Args:
        image_id: COCO's number, or the stem of Flickr30k's file name.
        split: `train`, `restval`, `val` or `test`; "" where the file does not say.
    """

    image_id: str
    image_path: Path
    split: str
    captions: tuple[str, ...]


def load_coco(folder: Path, part: Part) -> list[CaptionRecord]:
    """Karpathy's split of COCO."""
    path = find_file(folder, ["dataset_coco.json"], "Karpathy's split of COCO")
    return read_karpathy(path, folder, KARPATHY_SPLITS[part])


def load_flickr30k(folder: Path, part: Part) -> list[CaptionRecord]:
    """Karpathy's split of Flickr30k."""
    path = find_file(folder, ["dataset_flickr30k.json"], "Karpathy's split of Flickr30k")
    images = image_dir(folder, FLICKR30K_FOLDERS)
    return read_karpathy(path, images, KARPATHY_SPLITS[part])


def read_captions(path: Path, splits: tuple[str, ...] = ("test",)) -> list[CaptionRecord]:
    """Either kind of file: of Karpathy's the records of `splits`, of COCO's all."""
    value = read_json(path)
    if isinstance(value, dict) and "annotations" in value:
        return _coco_records(path, value, path.parent)
    return _of_splits(path, _karpathy_records(path, value, path.parent), splits)


def read_karpathy(path: Path, images: Path, splits: tuple[str, ...]) -> list[CaptionRecord]:
    """The pictures of some splits of `dataset_{coco,flickr30k}.json`."""
    found = path.stat()
    records = _whole_file(path, images, found.st_mtime_ns, found.st_size)
    return _of_splits(path, records, splits)


@lru_cache(maxsize=2)
def _whole_file(
    path: Path, images: Path, mtime_ns: int, num_bytes: int
) -> tuple[CaptionRecord, ...]:
    """Every picture of a file, parsed once for the part that is asked about and the shots' part."""
    return tuple(_karpathy_records(path, read_json(path), images))


def _karpathy_records(path: Path, value: Any, images: Path) -> list[CaptionRecord]:
    return [
        _karpathy_record(image, images, image.text("split"))
        for image in json_records(path, value, "images")
    ]


def _of_splits(
    path: Path, records: Iterable[CaptionRecord], splits: tuple[str, ...]
) -> list[CaptionRecord]:
    kept = [record for record in records if record.split in splits]
    if not kept:
        raise UserError(f'{path}: no picture of split {" or ".join(splits)} under "images"')
    _check_alone(path, kept)
    return kept


def _karpathy_record(image: Record, images: Path, split: str) -> CaptionRecord:
    name = image.text("filename")
    image_id = image.identifier("cocoid") if "cocoid" in image.fields else Path(name).stem
    captions = tuple(sentence.text("raw") for sentence in image.objects("sentences"))
    if not captions:
        raise image.error('"sentences" is empty; a picture needs a caption to be scored')
    folder = images / image.text("filepath") if "filepath" in image.fields else images
    return CaptionRecord(image_id, folder / name, split, captions)


def read_coco(path: Path, images: Path) -> list[CaptionRecord]:
    """All pictures of a `captions_*.json`, which says nothing about Karpathy's splits."""
    return _coco_records(path, read_json(path), images)


def _coco_records(path: Path, value: Any, images: Path) -> list[CaptionRecord]:
    pictures = by_id(json_records(path, value, "images"), "id")
    captions: dict[str, list[str]] = defaultdict(list)
    for annotation in json_records(path, value, "annotations"):
        image_id = annotation.identifier("image_id")
        if image_id not in pictures:
            raise annotation.error(f'"image_id" {image_id} is not under "images"')
        captions[image_id].append(annotation.text("caption"))
    bare = [image_id for image_id in pictures if image_id not in captions]
    if bare:
        raise UserError(f"{path}: {len(bare)} pictures have no caption: {named(bare)}")
    return [
        CaptionRecord(image_id, _coco_path(images, picture.text("file_name")), "", tuple(texts))
        for image_id, picture in pictures.items()
        for texts in (captions[image_id],)
    ]


def _coco_path(images: Path, name: str) -> Path:
    """Of 2014 the name says the folder (`COCO_val2014_000000000042.jpg`)."""
    folder = next((folder for folder in COCO_FOLDERS if folder in name), None)
    return images / folder / name if folder and "/" not in name else images / name


def _check_alone(path: Path, records: list[CaptionRecord]) -> None:
    seen: set[str] = set()
    doubled = [r.image_id for r in records if r.image_id in seen or seen.add(r.image_id)]  # type: ignore[func-returns-value]
    if doubled:
        raise UserError(f"{path}: {len(doubled)} picture ids occur twice: {named(doubled)}")

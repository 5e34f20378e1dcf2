"""Captions of COCO (`images` and `annotations`) and Karpathy's splits (`images[].sentences`)."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from corpora.document import Document, TextSegment
from corpora.pipeline.readers.base import BadRecord, Format, ReadLog
from corpora.pipeline.readers.pictures import open_pictures
from corpora.pipeline.readers.streams import BROKEN, open_stream
from corpora.pipeline.units import Part, files_under
from mllm.errors import UserError

IMAGES_A_PART = 5000
PEEK = 1 << 16


class _Captions(Format):
    """One JSON object with all images. It is held in memory, once a process."""

    def claims(self, source: Path) -> bool:
        path = next(files_under(source, (".json",)), None)
        if path is None or path.suffix != ".json":
            return False
        with open(path, "rb") as file:
            if not file.read(PEEK).lstrip().startswith(b"{"):
                return False
        try:
            return self.fits(_load(str(path)))
        except UserError:
            return False

    def fits(self, content: dict[str, Any]) -> bool:
        raise NotImplementedError

    def captions(self, image: dict[str, Any], content: dict[str, Any]) -> list[str]:
        raise NotImplementedError

    def file_name(self, image: dict[str, Any]) -> str:
        raise NotImplementedError

    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        for path in files_under(source, (".json",)):
            content = _load(str(path))
            if not self.fits(content):
                raise UserError(
                    f"{path}: not {self.summary}; its keys are {', '.join(content) or 'none'}"
                )
            self._check_split(content, path)
            root = self.options.image_dir or str(path.parent)
            open_pictures(root)  # says so now if there is no such folder
            total, size = len(content["images"]), path.stat().st_size
            for start in range(0, total, IMAGES_A_PART):
                stop = min(start + IMAGES_A_PART, total)
                # Each part is a unit of its own: what weighs is the pictures.
                yield Part(str(path), max(unit_bytes, size // total), start, stop, root)

    def _check_split(self, content: dict[str, Any], path: Path) -> None:
        there = {str(i["split"]) for i in content["images"] if isinstance(i, dict) and "split" in i}
        wanted = set(self.options.split.split(",")) if self.options.split else set()
        if wanted and not wanted & there:
            raise UserError(
                f"{path}: no image of --split {self.options.split}; its splits are "
                f"{', '.join(sorted(there)) or 'none'}"
            )

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        content, pictures = _load(part.path), open_pictures(part.root)
        splits = set(self.options.split.split(",")) if self.options.split else None
        images = content["images"][part.start : part.stop]
        for number, image in enumerate(images):
            log.bytes_in_part = part.size * (number + 1) // len(images)
            if splits and image.get("split") not in splits:
                continue
            where = f"{Path(part.path).name} image {part.start + number}"
            try:
                texts = [c for c in self.captions(image, content) if c.strip()]
                if not texts:
                    raise BadRecord("no caption")
                shown = pictures.get(self.file_name(image))
            except BadRecord as bad:
                log.drop(bad.reason, where, bad.excerpt)
                continue
            except (KeyError, TypeError, AttributeError) as error:
                log.drop("image entry lacks a key", where, repr(error))
                continue
            meta = {"file_name": self.file_name(image)}
            meta |= {n: image[n] for n in ("id", "imgid", "cocoid", "split") if n in image}
            for text in texts[: 1 if self.options.captions == "first" else None]:
                yield Document("", (shown, TextSegment(text)), meta)


class Coco(_Captions):
    name = "coco"
    summary = "COCO captions JSON: images and annotations; pictures under --image-dir"

    def fits(self, content: dict[str, Any]) -> bool:
        annotations = content.get("annotations")
        return (
            isinstance(content.get("images"), list)
            and isinstance(annotations, list)
            and any("caption" in a for a in annotations[:10] if isinstance(a, dict))
        )

    def captions(self, image: dict[str, Any], content: dict[str, Any]) -> list[str]:
        return _by_image(content).get(image["id"], [])

    def file_name(self, image: dict[str, Any]) -> str:
        return image["file_name"]


class Karpathy(_Captions):
    name = "karpathy"
    summary = "Karpathy's JSON: images[].sentences[].raw; pictures under --image-dir; --split"

    def fits(self, content: dict[str, Any]) -> bool:
        images = content.get("images")
        return (
            isinstance(images, list)
            and bool(images)
            and isinstance(images[0], dict)
            and "sentences" in images[0]
        )

    def captions(self, image: dict[str, Any], content: dict[str, Any]) -> list[str]:
        return [sentence["raw"] for sentence in image["sentences"]]

    def file_name(self, image: dict[str, Any]) -> str:
        folder = image.get("filepath")
        return f"{folder}/{image['filename']}" if folder else image["filename"]


def _load(path: str) -> dict[str, Any]:
    return _load_once(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load_once(path: str, mtime_ns: int) -> dict[str, Any]:
    try:
        with open_stream(Path(path)) as file:
            content = json.loads(file.read())
    except (*BROKEN, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole JSON file ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON {type(content).__name__}, not an object")
    return content


def _by_image(content: dict[str, Any]) -> dict[Any, list[str]]:
    """Captions by image, in the annotations' order; kept beside what it was made from."""
    if "\0captions" not in content:
        found: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            match annotation:
                case {"image_id": image, "caption": str(caption)}:
                    found.setdefault(image, []).append(caption)
        content["\0captions"] = found
    return content["\0captions"]

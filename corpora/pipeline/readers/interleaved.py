"""Interleaved documents from MMC4, OBELICS and our own JSON."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, Segment, TextSegment
from corpora.pipeline.readers.base import BadRecord, ReadLog, picture
from corpora.pipeline.readers.pictures import decoded, open_pictures
from corpora.pipeline.readers.rows import parse_object, rows
from corpora.pipeline.readers.tables import RowFormat, meta_of
from corpora.pipeline.units import Part
from mllm.errors import UserError

URL_MAP = "urls.jsonl"


class _Interleaved(RowFormat):
    """A row is a document. A missing picture is left out; a document without any is dropped."""

    keys: tuple[str, ...]

    def check(self, row: dict[str, Any], path: Path) -> None:
        missing = [key for key in self.keys if key not in row]
        if missing:
            raise UserError(
                f"{path}: not {self.summary}: no {' and no '.join(missing)}; its keys are "
                f"{', '.join(row) or 'none'}"
            )

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        for where, row in rows(part, log):
            try:
                segments = self.segments(row, part, log, where)
                if not any(isinstance(s, ImageSegment) for s in segments):
                    raise BadRecord("no picture left")
                yield Document("", tuple(segments), self.meta(row))
            except BadRecord as bad:
                log.drop(bad.reason, where, bad.excerpt)

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        raise AssertionError("`read` needs the log")

    def segments(self, row: dict[str, Any], part: Part, log: ReadLog, where: str) -> list[Segment]:
        raise NotImplementedError

    def meta(self, row: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def place(self, part: Part) -> str:
        return self.options.image_dir or part.root


class Mmc4(_Interleaved):
    name = "mmc4"
    summary = "MMC4 JSON lines: text_list and image_info; pictures under --image-dir or in base64"
    suffixes = (".jsonl", ".ndjson", ".json")
    keys = ("text_list", "image_info")
    weight = 64

    def segments(self, row: dict[str, Any], part: Part, log: ReadLog, where: str) -> list[Segment]:
        texts, infos = row.get("text_list"), row.get("image_info")
        if not isinstance(texts, list) or not isinstance(infos, list):
            raise BadRecord("text_list or image_info is no list")
        before: dict[int, list[ImageSegment]] = {}
        for info in infos:
            try:
                index = info["matched_text_index"]
                if not isinstance(index, int) or not 0 <= index < len(texts):
                    raise BadRecord("picture matched to no sentence", repr(index))
                shown = self._picture(info, part)
                before.setdefault(index, []).append(shown)
            except BadRecord as bad:
                log.leave_out(bad.reason, where, bad.excerpt)
            except (KeyError, TypeError):
                log.leave_out("picture without matched_text_index", where, repr(info)[:200])
        segments: list[Segment] = []
        sentences: list[str] = []
        for index, text in enumerate(texts):
            if index in before:
                segments += _joined(sentences, " ")
                sentences = []
                segments += before[index]
            if isinstance(text, str) and text.strip():
                sentences.append(text.strip())
        return segments + _joined(sentences, " ")

    def _picture(self, info: dict[str, Any], part: Part) -> ImageSegment:
        for key in ("image_base64", "image_bytes", "bytes", "image"):
            if isinstance(info.get(key), str):
                return decoded(info[key])
        name = info.get("image_name")
        if not isinstance(name, str):
            raise BadRecord("no picture")
        return open_pictures(self.place(part)).get(name)

    def meta(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in ("url",) if isinstance(row.get(name), str)}


class Obelics(_Interleaved):
    name = "obelics"
    summary = "OBELICS parquet: aligned texts and images; URLs through urls.jsonl in --image-dir"
    suffixes = (".parquet",)
    keys = ("texts", "images")

    def segments(self, row: dict[str, Any], part: Part, log: ReadLog, where: str) -> list[Segment]:
        texts, images = row.get("texts"), row.get("images")
        if not isinstance(texts, list) or not isinstance(images, list):
            raise BadRecord("texts or images is no list")
        if len(texts) != len(images):
            raise BadRecord("texts and images are not aligned", f"{len(texts)}, {len(images)}")
        segments: list[Segment] = []
        paragraphs: list[str] = []  # since the last picture that is there
        for text, image in zip(texts, images, strict=True):
            if (text is None) == (image is None):
                raise BadRecord("texts and images are not aligned", repr(text)[:100])
            if isinstance(text, str):
                paragraphs += [text] if text.strip() else []
                continue
            try:
                shown = self._picture(image, part)
            except BadRecord as bad:
                log.leave_out(bad.reason, where, bad.excerpt)
                continue
            segments += [*_joined(paragraphs, "\n\n"), shown]
            paragraphs = []
        return segments + _joined(paragraphs, "\n\n")

    def _picture(self, value: Any, part: Part) -> ImageSegment:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path") or value.get("url")
        if not isinstance(value, str):
            return picture(value)
        if value.startswith("data:"):
            return decoded(value)
        names = url_map(self.place(part))
        if value.startswith(("http://", "https://")):
            if value not in names:
                raise BadRecord("picture's URL is not in urls.jsonl", value)
            value = names[value]
        return open_pictures(self.place(part)).get(value)

    def meta(self, row: dict[str, Any]) -> dict[str, Any]:
        general = row.get("general_metadata")
        if isinstance(general, str):
            try:
                general = json.loads(general)
            except ValueError:
                general = None
        url = general.get("url") if isinstance(general, dict) else None
        return {"url": url} if isinstance(url, str) else {}


class SegmentsJson(_Interleaved):
    name = "segments"
    summary = 'JSON lines or list with segments: [{"text": ...}, {"image": name or data:...}, ...]'
    suffixes = (".jsonl", ".ndjson", ".json")
    keys = ("segments",)
    weight = 16

    def segments(self, row: dict[str, Any], part: Part, log: ReadLog, where: str) -> list[Segment]:
        items = row.get("segments")
        if not isinstance(items, list):
            raise BadRecord("segments is no list")
        segments: list[Segment] = []
        is_gap = False  # whether a picture was left out here
        for item in items:
            match item:
                case {"text": str(text)}:
                    is_scored = item.get("scored", True) is True
                    touches = is_gap and segments and isinstance(segments[-1], TextSegment)
                    text = f"\n{text}" if touches and text else text
                    segments += [TextSegment(text, is_scored)] if text else []
                    is_gap = False
                case {"image": str(value)}:
                    try:
                        segments.append(self._picture(value, part))
                    except BadRecord as bad:
                        log.leave_out(bad.reason, where, bad.excerpt)
                        is_gap = True
                case _:
                    raise BadRecord("a segment is neither text nor image", repr(item)[:200])
        return segments

    def _picture(self, value: str, part: Part) -> ImageSegment:
        if value.startswith("data:"):
            return decoded(value)
        return open_pictures(self.place(part)).get(value)

    def meta(self, row: dict[str, Any]) -> dict[str, Any]:
        return meta_of(row, "segments")


@lru_cache(maxsize=2)
def url_map(place: str) -> dict[str, str]:
    """`urls.jsonl` of a picture folder: {"url", "file_name"} a line, held in memory; else empty.

    Raises:
        UserError: A line of it is something else.
    """
    path = Path(place) / URL_MAP
    found: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = parse_object(line)
                    found[row["url"]] = row["file_name"]
                except (BadRecord, KeyError):
                    raise UserError(f"{path} line {number}: needs url and file_name") from None
    except OSError:
        return {}
    return found


def _joined(texts: list[str], by: str) -> list[Segment]:
    """One text segment, or none."""
    return [TextSegment(by.join(texts))] if texts else []

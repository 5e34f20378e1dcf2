"""A sample as ordered segments of text and pictures, and its spellings in a shard.

    KEY.jpg|png|webp + KEY.txt [+ KEY.json]      an image-text pair (what img2dataset writes)
    KEY.txt [+ KEY.json], or KEY.json `text`     text
    KEY.json `segments` + KEY.0.jpg ...          interleaved, in document order
    KEY.json `turns` + KEY.0.jpg ...             instruction: roles, loss on the assistant only
    KEY.jpg|png|webp [+ KEY.json]                a picture alone (evaluation sets)

One `Document` type serves them all; everything after this file sees only segments.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mllm.errors import BadSample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff")
TEXT_EXTENSIONS = ("txt", "json")  # all that `from_members` reads, but for pictures it hands on

# First bytes of the formats that are written with their own extension.
IMAGE_MAGIC = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpg"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)


@dataclass(frozen=True)
class TextSegment:
    """Text; the model is trained to predict it unless `is_scored` is False."""

    text: str
    is_scored: bool = True


@dataclass(frozen=True)
class ImageSegment:
    """An encoded picture (png, jpg, webp), as it lies in the shard."""

    data: bytes


Segment = TextSegment | ImageSegment


class Turn(NamedTuple):
    """Who says the next `num_segments` segments of an instruction document."""

    role: str  # "user", "assistant", "system", ...; only the assistant's text is scored
    num_segments: int


@dataclass(frozen=True)
class Document:
    """One sample: its key, its segments in order, and its JSON without text and segments.

    `turns` says who speaks in an instruction document; it is empty in all others. The stream sees
    only the segments.
    """

    key: str
    segments: tuple[Segment, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes over all text segments, scored or not."""
        texts = (s.text for s in self.segments if isinstance(s, TextSegment))
        return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)

    @property
    def images(self) -> tuple[bytes, ...]:
        return tuple(s.data for s in self.segments if isinstance(s, ImageSegment))


def image_extension(data: bytes) -> str:
    """The member extension for an encoded picture, from its first bytes."""
    for magic, extension in IMAGE_MAGIC:
        if data.startswith(magic):
            return extension
    raise ValueError(f"not a known picture format (first bytes {data[:8]!r})")


def to_members(document: Document) -> dict[str, bytes]:
    """Spells a document as shard members: extension to bytes."""
    if document.turns:
        return _turn_members(document)
    match document.segments:
        case (ImageSegment(data), TextSegment(text, True)):
            members = {image_extension(data): data, "txt": text.encode()}
            return members | _json_member(document.meta)
        case (TextSegment(text, True),):
            return {"txt": text.encode()} | _json_member(document.meta)
        case (ImageSegment(data),):
            return {image_extension(data): data} | _json_member(document.meta)
    items, members = _items(document.segments)
    return members | _json_member(document.meta | {"segments": items})


def _turn_members(document: Document) -> dict[str, bytes]:
    if sum(turn.num_segments for turn in document.turns) != len(document.segments):
        raise ValueError(f"{document.key}: its turns do not add up to its segments")
    items, members = _items(document.segments)
    turns, rest = [], iter(items)
    for role, num_segments in document.turns:
        said = list(itertools.islice(rest, num_segments))
        if role != "assistant":
            if any("text" in item and "scored" not in item for item in said):
                raise ValueError(f"{document.key}: scored text in a turn of {role!r}")
            said = [{name: item[name] for name in item if name != "scored"} for item in said]
        turns.append({"role": role, "segments": said})
    return members | _json_member(document.meta | {"turns": turns})


def _items(segments: tuple[Segment, ...]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Segments as JSON items, and the members that hold their pictures."""
    items: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    for segment in segments:
        if isinstance(segment, ImageSegment):
            number = str(len(members))
            members[f"{number}.{image_extension(segment.data)}"] = segment.data
            items.append({"image": number})
        elif segment.is_scored:
            items.append({"text": segment.text})
        else:
            items.append({"text": segment.text, "scored": False})
    return items, members


def from_members(key: str, members: Mapping[str, bytes]) -> Document:
    """Reads a document from its shard members (extension to bytes).

    Raises:
        BadSample: The members spell no document, or their text is not UTF-8 or not JSON.
    """
    meta = _read_json(key, members["json"]) if "json" in members else {}
    if "segments" in meta:
        segments = _read_segments(key, meta.pop("segments"), members, is_scored=True)
        return Document(key, tuple(segments), meta)
    if "turns" in meta:
        segments, turns = _read_turns(key, meta.pop("turns"), members)
        return Document(key, tuple(segments), meta, tuple(turns))
    image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
    text = _read_text(key, members["txt"]) if "txt" in members else None
    if text is None and isinstance(meta.get("text"), str):
        text = _whole(key, meta.pop("text"))
    if image is None and text is None:
        found = ", ".join(sorted(members)) or "nothing"
        raise BadSample(f"{key}: neither picture nor text; its members are {found}")
    pair = (
        [ImageSegment(image)] if image is not None else [],
        [TextSegment(text)] if text is not None else [],
    )
    return Document(key, (*pair[0], *pair[1]), meta)


def _json_member(meta: dict[str, Any]) -> dict[str, bytes]:
    if not meta:
        return {}
    try:
        return {"json": json.dumps(meta, ensure_ascii=False, sort_keys=True).encode()}
    except UnicodeEncodeError:  # half a surrogate pair: JSON can only say it escaped
        return {"json": json.dumps(meta, sort_keys=True).encode()}


def _read_text(key: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadSample(f"{key}.txt: not UTF-8 (byte {error.start})") from None


def _whole(key: str, text: str) -> str:
    """`text`, unless it holds half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise BadSample(
            f"{key}.json: text with a lone surrogate (character {error.start})"
        ) from None
    return text


def _read_json(key: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{key}.json: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadSample(f"{key}.json: holds a {type(value).__name__}, not an object")
    return value


def _read_segments(
    key: str, items: Any, members: Mapping[str, bytes], is_scored: bool
) -> list[Segment]:
    if not isinstance(items, list):
        raise BadSample(f"{key}.json: `segments` is not a list")
    segments: list[Segment] = []
    for number, item in enumerate(items):
        match item:
            case {"text": str(text)}:
                text = _whole(key, text)
                segments.append(TextSegment(text, is_scored and item.get("scored", True) is True))
            case {"image": str(name)}:
                segments.append(ImageSegment(_named_image(key, name, members)))
            case _:
                raise BadSample(f"{key}.json: segment {number} has neither text nor image")
    if not segments:
        raise BadSample(f"{key}.json: no segments")
    return segments


def _read_turns(
    key: str, items: Any, members: Mapping[str, bytes]
) -> tuple[list[Segment], list[Turn]]:
    if not isinstance(items, list) or not items:
        raise BadSample(f"{key}.json: `turns` is not a list of turns")
    segments: list[Segment] = []
    turns = []
    for number, turn in enumerate(items):
        match turn:
            case {"role": str(role), "segments": said}:
                read = _read_segments(key, said, members, is_scored=role == "assistant")
                segments += read
                turns.append(Turn(role, len(read)))
            case _:
                raise BadSample(f"{key}.json: turn {number} needs `role` and `segments`")
    return segments, turns


def _named_image(key: str, name: str, members: Mapping[str, bytes]) -> bytes:
    for extension in IMAGE_EXTENSIONS:
        if f"{name}.{extension}" in members:
            return members[f"{name}.{extension}"]
    shown = name.encode("utf-8", "backslashreplace").decode()  # half a surrogate cannot be printed
    raise BadSample(f"{key}: no member {key}.{shown}.jpg (or png, webp) for image {shown!r}")

"""Our documents as datatrove's, so that its readers, filters and executors carry them.

datatrove Document.text       all scored and unscored text, joined by newlines
datatrove Document.media      the pictures, in order
datatrove Document.metadata   our meta, the layout of segments under LAYOUT, turns under TURNS
"""

import hashlib
from typing import Any

from datatrove.data import Document as Record
from datatrove.data import Media, MediaType

from corpora.document import Document, ImageSegment, Segment, TextSegment, Turn

TURNS = "mllm_turns"  # list of (role, number of segments), for instruction documents only
LAYOUT = "mllm_layout"  # list of {"text": ..., "scored": bool} | {"image": number in media}


def to_record(document: Document) -> Record:
    """The same sample for datatrove; `from_record` gives it back."""
    layout: list[dict[str, Any]] = []
    media: list[Media] = []
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            layout.append({"image": len(media)})
            number = str(len(media))
            media.append(Media(number, MediaType.IMAGE, url="", media_bytes=segment.data))
        else:
            layout.append({"text": segment.text, "scored": segment.is_scored})
    text = "\n".join(s.text for s in document.segments if isinstance(s, TextSegment))
    metadata = {**document.meta, LAYOUT: layout}
    if document.turns:
        metadata[TURNS] = document.turns
    return Record(text, document.key, media, metadata)


def from_record(record: Record) -> Document:
    """Our document of a record.

    A step may have rewritten `text` (C4's filter drops lines): a record with one text segment takes
    its text from there. Steps that rewrite may not run on records with more.
    """
    layout = record.metadata.get(LAYOUT)
    meta = {k: value for k, value in record.metadata.items() if k not in (LAYOUT, TURNS)}
    turns = tuple(Turn(*turn) for turn in record.metadata.get(TURNS, ()))
    if layout is None:
        return Document(record.id, (TextSegment(record.text),), meta)
    texts = [item for item in layout if "text" in item]
    segments: list[Segment] = []
    for item in layout:
        if "image" in item:
            segments.append(ImageSegment(record.media[item["image"]].media_bytes or b""))
        else:
            text = record.text if len(texts) == 1 else item["text"]
            segments.append(TextSegment(text, item["scored"]))
    return Document(record.id, tuple(segments), meta, turns)


def unit_key(unit: int, number: int) -> str:
    """The key of record `number` of a unit: unique in a corpus, sorted as the input is."""
    return f"{unit:06d}{number:08d}"


def text_digest(text: str) -> str:
    """32 hex over text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

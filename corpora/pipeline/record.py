"""Our documents as datatrove's, so that its readers, filters and executors carry them.

datatrove Document.text       all scored and unscored text, joined by newlines
datatrove Document.media      the pictures, in order
datatrove Document.metadata   our meta, the layout of segments under LAYOUT, roles under ROLES
"""

import hashlib
import itertools
from collections import Counter
from typing import Any

from datatrove.data import Document as Record
from datatrove.data import Media, MediaType

from corpora.document import Document, ImageSegment, Segment, TextSegment, Turn

LAYOUT = "mllm_layout"  # list of {"text": ..., "scored": bool} | {"image": number in media}, each
ROLES = "mllm_roles"  # with "turn": number in this list of roles if it is an instruction document


def to_record(document: Document) -> Record:
    """The same sample for datatrove; `from_record` gives it back."""
    layout: list[dict[str, Any]] = []
    media: list[Media] = []
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            layout.append({"image": len(media)})
            media.append(Media(str(len(media)), MediaType.IMAGE, url="", media_bytes=segment.data))
        else:
            layout.append({"text": segment.text, "scored": segment.is_scored})
    text = "\n".join(s.text for s in document.segments if isinstance(s, TextSegment))
    roles = [turn.role for turn in document.turns]
    metadata = {**document.meta, LAYOUT: layout, ROLES: roles}
    if document.turns:
        said = iter(layout)
        for number, turn in enumerate(document.turns):
            for line in itertools.islice(said, turn.num_segments):
                line["turn"] = number
    return Record(text, document.key, media, metadata)


def from_record(record: Record) -> Document:
    """Our document of a record.

    A step may have rewritten `text` (C4's filter drops lines): a record with one text segment takes
    its text from there. Steps that rewrite may not run on records with more. A step may also have
    taken items out of the layout; a turn that lost all of them goes too.
    """
    meta = dict(record.metadata)
    layout, roles = meta.pop(LAYOUT, None), meta.pop(ROLES, ())
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
    sizes = Counter(item["turn"] for item in layout) if roles else {}
    turns = tuple(Turn(role, sizes[i]) for i, role in enumerate(roles) if sizes[i])
    return Document(record.id, tuple(segments), meta, turns)


def unit_key(unit: int, number: int) -> str:
    """The key of record `number` of a unit: unique in a corpus, sorted as the input is."""
    return f"{unit:06d}{number:08d}"


def text_digest(text: str) -> str:
    """32 hex over text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

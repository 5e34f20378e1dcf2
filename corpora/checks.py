"""What may be wrong with one sample, as training would meet it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from corpora.document import IMAGE_EXTENSIONS, Document, TextSegment
from corpora.picture_size import picture_size
from corpora.tar import TarSample
from mllm.errors import BadSample
from mllm.images import open_picture

MIN_SIDE = 8  # pixels
MAX_PIXELS = 64_000_000  # `open_picture` refuses more
MAX_ASPECT = 20
MAX_MEMBER_BYTES = 1 << 30

# tokenizer/specials.py lists these; corpora may not import it, and a test compares.
SPECIALS = (
    *("<s>", "<pad>", "</s>", "<unk>", "<image>", "</image>", "<slot>", "</line>"),
    *(f"<reserved_{number}>" for number in range(8)),
)
SPECIAL = re.compile("|".join(map(re.escape, SPECIALS)))


@dataclass(frozen=True)
class Finding:
    """Something wrong. Errors are what training would mask or stop at."""

    level: Literal["error", "warning"]
    kind: str
    detail: str
    shard: str = ""
    key: str = ""  # empty for a whole shard


def check_sample(sample: TarSample, document: Document | BadSample) -> Iterator[Finding]:
    """Everything that is wrong with a sample alone; decodes its pictures."""
    for fault in sample.faults:
        yield Finding("warning", "member left out", fault)
    for extension, (_, size) in sample.places.items():
        if size > MAX_MEMBER_BYTES:
            yield Finding("warning", "huge member", f".{extension} has {size:,} bytes")
    if isinstance(document, BadSample):
        yield Finding("error", "no document", str(document))
    else:
        yield from _check_document(document)
    yield from _check_key(sample)


def _check_document(document: Document) -> Iterator[Finding]:
    texts = [s.text for s in document.segments if isinstance(s, TextSegment)]
    if not document.images and not any(texts):
        yield Finding("error", "empty", "no picture and no text")
    found = {match for text in texts for match in SPECIAL.findall(text)}
    if found:
        shown = ", ".join(sorted(found))
        yield Finding("warning", "special token in text", f"{shown}: escaped at encoding")
    if any("\0" in text for text in texts):
        yield Finding("warning", "NUL in text", "a NUL character; binary data, perhaps")
    for number, data in enumerate(document.images):
        yield from _check_picture(number, data)


def _check_picture(number: int, data: bytes) -> Iterator[Finding]:
    width, height = picture_size(data)
    if width * height > MAX_PIXELS:
        detail = f"image {number}: {width} x {height} pixels; at most {MAX_PIXELS:,} in all"
        yield Finding("error", "absurd size", detail)
        return
    try:
        width, height = open_picture(data).size
    except ValueError as error:
        yield Finding("error", "broken picture", f"image {number}: {error}")
        return
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        yield Finding("warning", "absurd size", f"image {number}: {width} x {height} pixels")


def _check_key(sample: TarSample) -> Iterator[Finding]:
    """Warns of `photo.v2.jpg`: readers take `photo` for the key and `v2.jpg` for the extension."""
    whole = {"txt", "json", *IMAGE_EXTENSIONS}
    dotted = [e for e in sample.places if "." in e and e.rpartition(".")[2] in whole]
    if dotted and not ("json" in sample.places and _is_numbered(dotted)):
        detail = f"{sample.key}.{dotted[0]}: readers end the key at the first dot"
        yield Finding("warning", "dotted key", detail)


def _is_numbered(extensions: list[str]) -> bool:
    """Whether these are the pictures of an interleaved document: `0.jpg`, `1.png`."""
    return all(re.fullmatch(r"[^.]+\.[^.]+", e) for e in extensions)

"""Width and height of an encoded picture from its first bytes.

Opening a picture with PIL costs 20 to 60 us, as much as hashing it. The three formats that web
corpora are made of are read here; everything else, and whatever looks odd, goes to PIL.
"""

import io
import warnings

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# mllm/images.py lists these too; it brings torch, which an index does without, and a test compares.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO")
# Markers that start a JPEG frame and hold its size: SOF0 to SOF15 without DHT, JPG and DAC.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height), not turned by EXIF; (0, 0) leaves the verdict to decoding."""
    if data.startswith(b"\xff\xd8"):
        size = _jpeg_size(data)
    elif data.startswith(PNG):
        size = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = _webp_size(data)
    else:
        size = None
    return _pil_size(data) if size is None or 0 in size else size


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at, end = 2, len(data) - 9
    while at < end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in FRAMES:
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA:  # no segment, or the pixels already
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        both = int.from_bytes(data[26:30], "little")
        return both & 0x3FFF, both >> 16 & 0x3FFF
    return None


def _pil_size(data: bytes) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of very large pictures: lint names them
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.size
    except Exception:  # PIL raises many kinds on broken headers; none is worth stopping for here
        return (0, 0)

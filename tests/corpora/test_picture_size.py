"""Sizes from headers are PIL's, in every format and mode that it writes."""

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corpora.picture_size import FORMATS, picture_size
from mllm import images

WAYS = [
    ("PNG", "RGB", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {}),
    ("JPEG", "RGB", {"quality": 40}),
    ("JPEG", "RGB", {"progressive": True, "comment": b"a comment\xff\xc0"}),
    ("JPEG", "CMYK", {"dpi": (300, 300), "icc_profile": bytes(range(256)) * 300}),
    ("JPEG", "L", {"optimize": True, "restart_marker_rows": 1}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGBA", {}),
    ("WEBP", "RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {}),
    ("PPM", "RGB", {}),
]


def encoded(size, way) -> bytes:
    kind, mode, options = way
    if kind == "JPEG" and mode == "RGB":
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn, which sizes in an index do not follow
        options = options | {"exif": exif}
    buffer = io.BytesIO()
    Image.new(mode, size, 0).save(buffer, kind, **options)
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.sampled_from(WAYS))
def test_sizes_are_those_of_pil(size, way):
    data = encoded(size, way)
    with Image.open(io.BytesIO(data)) as image:
        assert picture_size(data) == image.size == size


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}-{way[1]}")
def test_any_beginning_of_a_picture_gives_its_size_or_none(way):
    data = encoded((300, 200), way)
    for length in [*range(min(len(data), 80)), len(data) // 2]:
        assert picture_size(data[:length]) in ((300, 200), (0, 0))


def test_every_format_that_is_decoded_has_a_size():
    assert FORMATS == images.FORMATS


def test_a_huge_picture_has_a_size_and_no_warning(recwarn):
    header = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, 12_000, 9000, 1, 24, 0, 0, 0, 0, 0, 0)
    assert picture_size(header + info + bytes(100)) == (12_000, 9000)
    assert not recwarn.list


@given(st.binary(max_size=60), st.sampled_from([b"\xff\xd8", b"\x89PNG\r\n", b"RIFF1234WEBPVP8"]))
def test_any_bytes_give_a_size(data, magic):
    width, height = picture_size(magic + data)
    assert width >= 0 and height >= 0

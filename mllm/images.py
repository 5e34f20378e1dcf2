"""One way from an encoded picture to pixels, for trainer, processor and chat alike.

This file is also copied flat into exported model folders, so it imports no other part of mllm.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps

try:  # half the time of PIL for the same pixels; the extra `fast`
    import simplejpeg
except ImportError:
    simplejpeg = None

# CLIP's statistics of RGB in 0..1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

Resize = Literal["crop", "squash"]

# Named, because PIL's other plugins include one that starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO")
# What PIL raises on headers that lie, besides ValueError.
BROKEN = (OSError, SyntaxError, EOFError, LookupError, TypeError, struct.error, zlib.error)

MAX_PIXELS = 64_000_000


def open_picture(
    source: bytes | str | Path | Image.Image, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The picture as 8-bit RGB: upright, on white, first frame.

    Args:
        source: Encoded bytes, a file's path, or a picture already open.
        max_pixels: Larger pictures are refused by their header, before decoding.

    Raises:
        ValueError: Not a picture, broken, or too large.
        OSError: The file at the path cannot be read.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(_checked(source, max_pixels))
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if (values := _plain_jpeg(data, max_pixels)) is not None:
        return Image.fromarray(values)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _to_rgb(_checked(picture, max_pixels))
    except Image.UnidentifiedImageError:
        raise ValueError(f"not a picture ({len(data):,} bytes, first {data[:8]!r})") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"picture too large ({error})") from None
    except BROKEN as error:
        raise ValueError(f"broken picture ({error})") from None


def to_pixels(picture: Image.Image, size: int, resize: Resize) -> np.ndarray:
    """Resizes an RGB picture to a square by bicubic interpolation with antialiasing.

    Args:
        picture: What `open_picture` gave.
        size: S, pixels a side.
        resize: "crop" keeps proportions and takes the centre square, "squash" keeps everything.

    Returns:
        uint8 (3, S, S)
    """
    box = (0.0, 0.0, float(picture.width), float(picture.height))
    if resize == "crop":
        side = min(picture.size)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
    elif resize != "squash":
        raise ValueError(f"resize is {resize!r}; crop or squash")
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # (3, S, S)


def read_pixels(data: bytes, size: int, resize: Resize) -> np.ndarray:
    """`to_pixels(open_picture(data), size, resize)`, without PIL for a JPEG of that size."""
    values = _plain_jpeg(data)
    if values is None:
        return to_pixels(open_picture(data), size, resize)
    if values.shape[:2] != (size, size):
        return to_pixels(Image.fromarray(values), size, resize)
    return np.ascontiguousarray(values.transpose(2, 0, 1))  # (3, S, S)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (or float in 0..255) (..., 3, S, S) to float32 by CLIP's mean and deviation."""
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1) * 255
    return (pixels.float() - mean) / std


# What may turn the picture (EXIF, XMP) or hold several: PIL sees to these.
NO_PLAIN_JPEG = (b"Exif", b"http://ns.adobe.com/xap", b"MPF\0")


def _plain_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """uint8 (height, width, 3) of a JPEG in grey or YCbCr that needs no turning, as PIL gives it.

    None for anything else, and without simplejpeg.

    Whatever simplejpeg finds odd (`strict` makes warnings errors) is left to PIL, which tells
    what is broken and reads what is merely unusual.
    """
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff":
        return None
    header = data[: _first_scan(data)]
    if any(mark in header for mark in NO_PLAIN_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or not 0 < width * height <= max_pixels:
            return None
        return simplejpeg.decode_jpeg(
            data, colorspace="RGB", fastdct=False, fastupsample=False, strict=True
        )
    except ValueError:
        return None


def _first_scan(data: bytes) -> int:
    """Where the segments of a JPEG end and its compressed pixels begin; its end if it is odd."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xDA:  # start of scan
            return place
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return len(data)


def _checked(picture: Image.Image, max_pixels: int) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels or width == 0 or height == 0:
        raise ValueError(f"picture of {width} x {height} pixels; at most {max_pixels:,} in all")
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16-bit grey; convert("RGB") would clip at 255 and leave it white.
        values = np.asarray(picture).astype(np.float32)
        scale = 1.0 if values.size and values.max() <= 255 and picture.mode == "F" else 255 / 65535
        grey = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    rgb = picture.convert("RGB")
    rgb.load()
    return rgb

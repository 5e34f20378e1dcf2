"""A picture's looks in 11 bytes: a perceptual hash of its shapes, and its mean colour."""

from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from mllm.images import open_picture

HASHES = {"phash": imagehash.phash, "dhash": imagehash.dhash}


class Looks(NamedTuple):
    """`shape` is 64 bits from grey values, so it is blind to colour; `colour` tells those apart."""

    shape: int
    colour: tuple[int, int, int]  # mean red, green, blue, 0 to 255


def looks(data: bytes, image_hash: str) -> Looks | None:
    """What an encoded picture looks like; None where it cannot be decoded."""
    try:
        picture = open_picture(data)
    except ValueError:
        return None
    bits = np.packbits(HASHES[image_hash](picture).hash)  # (64,) bool to 8 bytes
    mean = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return Looks(int.from_bytes(bits.tobytes(), "big"), mean)  # type: ignore[arg-type]

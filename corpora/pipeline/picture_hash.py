"""A picture's looks in 20 bytes: a perceptual hash of its shapes, and the colours of its quarters.

A perceptual hash sees grey values and few details: pictures that hold one small shape each (icons,
charts, pages with little on them) often share it. The colours tell most of those apart. Among 1,245
emoji and 2,583 drawings of one small shape, 2,778 pairs had hashes at most 4 bits apart; in 134 of
them all quarters were within 12 levels. Rescaled and recompressed copies stayed within 8.
"""

from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from mllm.images import open_picture

HASHES = {"phash": imagehash.phash, "dhash": imagehash.dhash}
COLOURS = 12  # bytes: mean red, green and blue of four quarters, 0 to 255


class Looks(NamedTuple):
    shape: int  # 64 bits
    colours: bytes  # COLOURS


def looks(data: bytes, image_hash: str) -> Looks | None:
    """What an encoded picture looks like; None where it cannot be decoded."""
    try:
        picture = open_picture(data)
    except ValueError:
        return None
    bits = np.packbits(HASHES[image_hash](picture).hash)  # (64,) bool to 8 bytes
    quarters = picture.resize((2, 2), Image.Resampling.BOX).tobytes()
    return Looks(int.from_bytes(bits.tobytes(), "big"), quarters)

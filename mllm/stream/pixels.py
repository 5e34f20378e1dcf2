"""Encoded pictures to pixels, with a bounded memory of what was decoded before.

A small corpus comes round many times in a run, and decoding took a fifth of the CPU time of the
demo's vision stage; of a large one nothing is kept.
"""

import hashlib
import threading
from collections import OrderedDict

import numpy as np

from mllm.images import Resize, read_pixels

CACHE_BYTES = 128 << 20  # in each process
FEW_TIMES = 4


class PixelCache:
    """Decodes and resizes pictures; keeps the least recently used out. Safe for threads."""

    def __init__(
        self,
        size: int,
        resize: Resize,
        *,
        num_pictures: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        """
        Args:
            size: S, pixels a side.
            resize: how a picture becomes square.
            num_pictures: how many there are, where that is known: nothing is kept of more than
                FEW_TIMES what fits, since few of them would be asked for again in time.
            cache_bytes: pixels kept, at most.
        """
        self.size, self._resize = size, resize
        self._capacity = cache_bytes // (3 * size * size)
        if num_pictures is not None and num_pictures > FEW_TIMES * self._capacity:
            self._capacity = 0
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def decode(self, picture: bytes) -> np.ndarray:
        """uint8 (3, S, S), not to be written to. ValueError where it is not a picture."""
        if not self._capacity:
            return read_pixels(picture, self.size, self._resize)
        key = hashlib.blake2b(picture, digest_size=16).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        pixels = read_pixels(picture, self.size, self._resize)
        pixels.flags.writeable = False
        with self._lock:
            self._kept[key] = pixels
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return pixels

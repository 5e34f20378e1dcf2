"""The pixel cache: the pixels of a fresh decode, bounded, least recently used out first."""

import numpy as np
import pytest

from mllm.images import open_picture, to_pixels
from mllm.stream.pixels import PixelCache
from tests.conftest import COLOURS, square

PICTURES = [square(colour).data for colour in COLOURS]


def test_cached_pixels_are_those_of_a_fresh_decode() -> None:
    cache = PixelCache(16, "squash")
    for picture in PICTURES * 2:
        assert np.array_equal(cache.decode(picture), to_pixels(open_picture(picture), 16, "squash"))
    assert len(cache) == len(PICTURES)
    with pytest.raises(ValueError, match="read-only"):
        cache.decode(PICTURES[0])[:] = 0


def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    cache = PixelCache(16, "squash", cache_bytes=2 * 3 * 16 * 16)
    first = cache.decode(PICTURES[0])
    cache.decode(PICTURES[1])
    assert cache.decode(PICTURES[0]) is first
    cache.decode(PICTURES[2])
    assert len(cache) == 2 and cache.decode(PICTURES[0]) is first


def test_what_is_no_picture_is_an_error_every_time() -> None:
    cache = PixelCache(16, "squash")
    for _ in range(2):
        with pytest.raises(ValueError, match="not a picture"):
            cache.decode(b"text")


def test_of_many_more_pictures_than_fit_none_is_kept() -> None:
    room = 2 * 3 * 16 * 16
    few = PixelCache(16, "squash", num_pictures=8, cache_bytes=room)
    many = PixelCache(16, "squash", num_pictures=9, cache_bytes=room)
    for picture in PICTURES:
        assert np.array_equal(few.decode(picture), many.decode(picture))
    assert len(few) == 2 and len(many) == 0

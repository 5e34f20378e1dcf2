"""Augmentation: a picture's own seed decides, white stays white, and something changes."""

import torch

from mllm.stream.augment import augment


def pictures(number: int) -> torch.Tensor:
    pixels = torch.full((number, 3, 32, 32), 255, dtype=torch.uint8)
    pixels[:, 0, 8:24, 10:20] = 30
    pixels[:, 1, 12:20, 8:24] = 80
    return pixels


def test_a_picture_depends_on_its_seed_and_not_on_its_neighbours() -> None:
    pixels, seeds = pictures(6), [3, 1, 4, 1, 5, 2**63 - 1]
    together = augment(pixels, seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i : i + 1], augment(pixels[i : i + 1], [seed]))
    assert torch.equal(together[1], together[3])
    assert not torch.equal(together[0], together[1])


def test_white_stays_white_inside_and_beyond_the_border() -> None:
    white = torch.full((8, 3, 32, 32), 255, dtype=torch.uint8)
    assert torch.equal(augment(white, list(range(8))), white)


def test_the_picture_stays_a_picture() -> None:
    pixels = pictures(32)
    out = augment(pixels, list(range(32)))
    assert out.dtype == torch.uint8 and out.shape == pixels.shape
    is_ink = (out < 200).any(1).float().mean((1, 2))
    before = (pixels[0] < 200).any(0).float().mean()
    assert (is_ink > before * 0.3).all() and (is_ink < before * 2.5).all()


def test_pictures_that_keep_their_colours_are_only_moved() -> None:
    pixels = pictures(4)
    is_kept = torch.tensor([True, False, True, False])
    out = augment(pixels, [5, 6, 7, 8], is_kept)
    recoloured = augment(pixels, [5, 6, 7, 8])
    assert torch.equal(out[~is_kept], recoloured[~is_kept])
    # Blue is untouched white in these pictures, and moving cannot change that.
    assert (out[is_kept][:, 2] == 255).all()

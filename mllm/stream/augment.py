"""Random geometry and colour, drawn from each picture's own seed, so that a replay is exact.

Letters: I pictures, S pixels a side.
"""

import numpy as np
import torch
import torch.nn.functional as F

MAX_SHIFT = 0.12  # of the side
SCALE = (0.75, 1.2)  # log-uniform
ASPECT = 0.12  # log range
MAX_TURN = 0.26  # radians
FLIP = 0.5  # probability
COLOUR_PROBABILITY = 0.8
BRIGHTNESS = 0.25
CONTRAST = 0.3
SATURATION = 0.4
MAX_HUE = 0.15  # radians of rotation about the grey axis
GREY_PROBABILITY = 0.05
NUM_DRAWS = 12

LUMA = torch.tensor([0.299, 0.587, 0.114])


def augment(
    pixels: torch.Tensor, seeds: list[int], keep_colours: torch.Tensor | None = None
) -> torch.Tensor:
    """Moves and recolours pictures; what is moved in from outside is white.

    Args:
        pixels: uint8 (I, 3, S, S).
        seeds: one a picture.
        keep_colours: bool (I,), pictures that are only moved: their texts name colours.

    Returns:
        uint8 (I, 3, S, S).
    """
    draws = torch.from_numpy(
        np.stack([np.random.Generator(np.random.PCG64(seed)).random(NUM_DRAWS) for seed in seeds])
    ).float()  # (I, NUM_DRAWS), uniform in [0, 1)
    moved = _move(pixels.float() - 255.0, draws) + 255.0
    if keep_colours is None:
        moved = _recolour(moved, draws)
    else:
        moved[~keep_colours] = _recolour(moved[~keep_colours], draws[~keep_colours])
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def _move(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Flip, turn, scale, stretch and shift in one bilinear resampling; zeros come in."""
    low, high = np.log(SCALE)
    zoom = torch.exp(low + (high - low) * draws[:, 0])
    stretch = torch.exp((draws[:, 1] - 0.5) * ASPECT)
    angle = (draws[:, 2] * 2 - 1) * MAX_TURN
    flip = torch.where(draws[:, 3] < FLIP, -1.0, 1.0)
    shift = (draws[:, 4:6] * 2 - 1) * 2 * MAX_SHIFT
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        (
            torch.stack((flip * cos * stretch / zoom, -sin / zoom, shift[:, 0]), -1),
            torch.stack((flip * sin / zoom, cos / (stretch * zoom), shift[:, 1]), -1),
        ),
        1,
    )  # (I, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def _recolour(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Saturation, hue, contrast and brightness as one 3 x 3 matrix and an offset per picture."""
    is_recoloured = (draws[:, 6] < COLOUR_PROBABILITY).float()

    def around_one(column: int, spread: float) -> torch.Tensor:
        return 1 + (draws[:, column] * 2 - 1) * spread * is_recoloured

    saturation = around_one(7, SATURATION)
    saturation = torch.where(draws[:, 11] < GREY_PROBABILITY, 0.0, saturation)
    hue = (draws[:, 8] * 2 - 1) * MAX_HUE * is_recoloured
    grey = LUMA.expand(3, 3)
    identity = torch.eye(3)
    saturate = grey + saturation[:, None, None] * (identity - grey)
    # Rodrigues' rotation about (1, 1, 1) / sqrt(3).
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    cos, sin = hue.cos()[:, None, None], hue.sin()[:, None, None]
    turn = cos * identity + sin * cross + (1 - cos) / 3
    contrast, brightness = around_one(9, CONTRAST), around_one(10, BRIGHTNESS)
    matrix = (contrast * brightness)[:, None, None] * (turn @ saturate)
    # White stays white: backgrounds are white at evaluation too.
    return torch.einsum("icd,idhw->ichw", matrix, pixels - 255.0) + 255.0

"""Pictures to `pixel_values`, through the same function that the trainer uses: bit-equal pixels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from mllm.images import Resize, normalise, open_picture, to_pixels

Picture = Image.Image | bytes | Path | str | np.ndarray

TAKEN = "a PIL picture, encoded bytes, a local path, or a uint8 array (H, W) or (H, W, 3 or 4)"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")


def picture_path(text: str | Path) -> Path:
    """The local path that a picture's string is.

    Raises:
        ValueError: a URL.
    """
    if isinstance(text, str) and URL.match(text):
        raise ValueError(
            f"picture {text[:60]!r}: nothing is fetched from the network; give {TAKEN}"
        )
    return Path(text)


class MllmImageProcessor(BaseImageProcessor):
    """Opens, orients, flattens and resizes pictures; CLIP's mean and deviation after that.

    Args:
        image_size: side S of the square that the vision encoder sees, in pixels.
        resize: `squash` (the whole picture, distorted) or `crop` (its centre); as in training.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (an attribute of the base class)

    def __init__(self, image_size: int = 224, resize: Resize = "squash", **settings: Any) -> None:
        super().__init__(**settings)
        self.image_size = image_size
        self.resize = resize

    def preprocess(
        self,
        images: Picture | list[Picture],
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """`pixel_values`: float32 (I, 3, S, S), in the order of `images`.

        Args:
            images: PIL pictures, encoded bytes, local paths, or uint8 arrays (H, W) or (H, W, 3 or
                4). Nothing is fetched from the network.

        Raises:
            ValueError: no such file, not a picture, or one too large to decode.
            TypeError: of a type that is not taken.
        """
        if not isinstance(images, (list, tuple)):
            images = [images]
        pixels = [self.pixels(picture) for picture in images]
        return BatchFeature(
            {"pixel_values": normalise(torch.from_numpy(np.stack(pixels)))},
            tensor_type=return_tensors,
        )

    def pixels(self, picture: Picture) -> np.ndarray:
        """uint8 (3, S, S): what the trainer's loader makes of the same picture."""
        source: Any = picture
        if isinstance(picture, np.ndarray):
            is_grey = picture.ndim == 2
            if picture.dtype != np.uint8 or not (
                is_grey or (picture.ndim == 3 and picture.shape[2] in (3, 4))
            ):
                raise ValueError(
                    f"picture is a {picture.dtype} array {picture.shape}; give {TAKEN}"
                )
            source = Image.fromarray(picture)
        elif isinstance(picture, (str, Path)):
            source = picture_path(picture)
        elif not isinstance(picture, (Image.Image, bytes)):
            raise TypeError(f"picture is a {type(picture).__name__}; give {TAKEN}")
        try:
            opened = open_picture(source)
        except OSError as error:  # one line where transformers' users expect a ValueError
            raise ValueError(f"picture {source}: {error.strerror or error}") from None
        except ValueError as error:
            if not isinstance(source, Path):
                raise
            raise ValueError(f"picture {source}: {error}") from None
        return to_pixels(opened, self.image_size, self.resize)

"""Pictures to `pixel_values`, through the same function that the trainer uses: bit-equal pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from mllm.images import Resize, normalise, open_picture, to_pixels

Picture = Image.Image | bytes | Path | str | np.ndarray


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
            ValueError: not a picture, or one too large to decode.
        """
        if isinstance(images, (Image.Image, bytes, Path, str, np.ndarray)):
            images = [images]
        pixels = [self.pixels(picture) for picture in images]
        return BatchFeature(
            {"pixel_values": normalise(torch.from_numpy(np.stack(pixels)))},
            tensor_type=return_tensors,
        )

    def pixels(self, picture: Picture) -> np.ndarray:
        """uint8 (3, S, S): what the trainer's loader makes of the same picture."""
        source = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        return to_pixels(open_picture(source), self.image_size, self.resize)

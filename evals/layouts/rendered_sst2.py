"""Rendered SST-2: `DIR/{train,valid,test}/{negative,positive}/*.png`, the sentence in the picture.

The folder's name is the label, so that a picture that was not unpacked cannot be missed: what is
found is held against the release's count in the results.
"""

from dataclasses import dataclass
from pathlib import Path

from mllm.errors import UserError

LABELS = ("negative", "positive")
SIZES = {"train": 6920, "valid": 872, "test": 1821}


@dataclass(frozen=True, slots=True)
class Opinion:
    """`id` is `{label}/{file name without its ending}`."""

    id: str
    image_path: Path
    label: str


def load(folder: Path, split: str) -> list[Opinion]:
    """The pictures of a split, by name."""
    below = next((f for f in (folder, folder / "rendered-sst2") if (f / split).is_dir()), folder)
    opinions = []
    for label in LABELS:
        pictures = below / split / label
        if not pictures.is_dir():
            raise UserError(
                f"{pictures}: no such folder; unpack rendered-sst2.tgz whole and name the folder "
                f"that holds train, valid and test"
            )
        paths = sorted(path for path in pictures.iterdir() if path.suffix.lower() == ".png")
        if not paths:
            raise UserError(f"{pictures}: holds no .png; unpack rendered-sst2.tgz again")
        opinions += [Opinion(f"{label}/{path.stem}", path, label) for path in paths]
    return opinions

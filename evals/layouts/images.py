"""Where a data set's pictures lie, and which of them are missing. No picture is opened."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from evals.layouts.files import named
from mllm.errors import UserError

Part = Literal["evaluation", "training", "test"]


class HasImage(Protocol):
    """A record of any layout."""

    @property
    def image_path(self) -> Path: ...


R = TypeVar("R", bound=HasImage)


def image_dir(folder: Path, names: Sequence[str]) -> Path:
    """The first of the folders that there is; where none is, the first, so that it can be named."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])


def existing_images(records: Sequence[R], skip_missing: bool = False) -> tuple[list[R], int]:
    """Records whose picture is on disk, and how many pictures are not.

    Args:
        records: Several may share a picture.
        skip_missing: Leave records without a picture out. Else one missing picture is an error.

    Raises:
        UserError: Pictures are missing, or all are.
    """
    on_disk: dict[Path, set[str]] = {}  # a folder is listed once: a stat a picture costs seconds
    missing: dict[Path, None] = {}
    kept = []
    for record in records:
        folder = record.image_path.parent
        if folder not in on_disk:
            on_disk[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        if record.image_path.name in on_disk[folder]:
            kept.append(record)
        else:
            missing[record.image_path] = None
    if missing and (not skip_missing or not kept):
        num_images = len({record.image_path for record in records})
        mend = "unpack the rest" + (", or pass --skip-missing" if kept else "")
        raise UserError(
            f"{len(missing)} of {num_images} pictures are missing ({named(missing)}); {mend}"
        )
    return kept, len(missing)

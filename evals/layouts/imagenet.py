"""ImageNet's validation pictures, and the user's list of 1,000 class names.

    DIR/val/{wnid}/*.JPEG                             a class is its wnid's place in sorted order
    DIR/val/ILSVRC2012_val_00000001.JPEG              flat, as downloaded; then the devkit's
    DIR/ILSVRC2012_validation_ground_truth.txt        number of each picture's class, and
    DIR/map_clsloc.txt or DIR/meta.mat                the wnid of each number: they are not in
                                                      the order of wnids
    DIR/names.txt (a name a line) or DIR/classes.json (a list), in the order of sorted wnids

The devkit's files may also lie in `ILSVRC2012_devkit_t12/data/` or any folder of DIR.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.layouts.files import find_file, named, read_json, read_text
from evals.layouts.images import existing_images
from mllm.errors import UserError

NAMES = ("names.txt", "classes.json")
NAMES_SOURCE = "the CLIP-curated list, such as open_clip's IMAGENET_CLASSNAMES, one name a line"
WNID = re.compile(r"n\d{8}")
SUFFIXES = (".jpeg", ".jpg", ".png")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
NUM_LOW_LEVEL = 1000  # synsets of the devkit that are classes; the rest are their parents


@dataclass(frozen=True, slots=True)
class Photo:
    """`label` is the class's place among sorted wnids."""

    id: str
    image_path: Path
    label: int


@dataclass(frozen=True)
class ImageNet:
    """Photos with the names of their classes.

    Args:
        names_sha256: Of the names as a list: scores under two lists cannot be compared.
        num_missing: Photos that the devkit lists and the folder lacks.
    """

    photos: list[Photo]
    names: tuple[str, ...]
    names_sha256: str
    num_missing: int


def load(folder: Path, skip_missing: bool) -> ImageNet:
    names = read_names(folder)
    pictures = folder / "val"
    if not pictures.is_dir():
        raise UserError(f"{pictures}: no such folder; put the validation pictures there")
    wnids = sorted(path.name for path in pictures.iterdir() if WNID.fullmatch(path.name))
    photos = _by_folder(pictures, wnids) if wnids else _flat(folder, pictures)
    num_classes = len(wnids) if wnids else 1 + max(photo.label for photo in photos)
    if (wnids and num_classes != len(names)) or num_classes > len(names):
        raise UserError(
            f"{pictures}: {num_classes} classes, but {len(names)} names beside it; a class is its "
            f"place among all sorted wnids, so both must be whole"
        )
    photos, num_missing = existing_images(photos, skip_missing)
    sha256 = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return ImageNet(photos, names, sha256, num_missing)


def read_names(folder: Path) -> tuple[str, ...]:
    """The class names in the order of sorted wnids; two classes may have one name."""
    try:
        path = find_file(folder, NAMES, "ImageNet")
    except UserError as error:
        raise UserError(f"{error} ({NAMES_SOURCE})") from None
    if path.suffix == ".json":
        names = read_json(path)
        if type(names) is not list or not all(type(name) is str for name in names):
            raise UserError(f"{path}: must be a list of names in the order of sorted wnids")
    else:
        names = read_text(path).rstrip().split("\n")
    names = [name.strip() for name in names]
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path}: line {number}: is blank, must be a class name")
    return tuple(names)


def _by_folder(pictures: Path, wnids: list[str]) -> list[Photo]:
    photos = []
    for label, wnid in enumerate(wnids):
        paths = _pictures(pictures / wnid)
        if not paths:
            raise UserError(f"{pictures / wnid}: holds no picture; unpack it again")
        photos += [Photo(f"{wnid}/{path.stem}", path, label) for path in paths]
    return photos


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


# ----------------------------------------------------------------------------------------------
# A flat folder, by the devkit


def _flat(folder: Path, pictures: Path) -> list[Photo]:
    """Photo i of the devkit's list is of the class of its i-th number."""
    truth_path = _devkit_file(folder, TRUTH)
    wnid_of = _synsets(folder)
    places = {wnid: place for place, wnid in enumerate(sorted(wnid_of.values()))}
    photos = []
    for number, line in enumerate(read_text(truth_path).split(), start=1):
        wnid = wnid_of.get(line)
        if wnid is None:
            raise UserError(
                f"{truth_path}: line {number}: {line!r} is no class of the devkit "
                f"(1 to {len(wnid_of)})"
            )
        name = f"ILSVRC2012_val_{number:08}"
        photos.append(Photo(name, pictures / f"{name}.JPEG", places[wnid]))
    if not photos:
        raise UserError(f"{truth_path}: is empty; unpack the devkit again")
    unlisted = {path.name for path in _pictures(pictures)} - {p.image_path.name for p in photos}
    if unlisted:
        raise UserError(
            f"{pictures}: {len(unlisted)} pictures are not in {truth_path} "
            f"({named(sorted(unlisted))}); name both by one release"
        )
    return photos


def _devkit_file(folder: Path, *names: str) -> Path:
    for name in names:
        if found := sorted(folder.rglob(name)):
            return found[0]
    raise UserError(
        f"{folder / names[0]}: no such file{' (or ' + names[1] + ')' if names[1:] else ''}; a flat "
        f"val/ needs the devkit (ILSVRC2012_devkit_t12.tar.gz), or sort it into val/WNID/ folders"
    )


def _synsets(folder: Path) -> dict[str, str]:
    """wnid by the devkit's number, which is written as a string."""
    path = _devkit_file(folder, "map_clsloc.txt", "meta.mat")
    if path.suffix == ".mat":
        return _read_meta(path)
    synsets: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) < 2 or not WNID.fullmatch(parts[0]) or not parts[1].isdigit():
            raise UserError(
                f"{path}: line {number}: is {line.strip()!r}, must be as n02119789 1 kit_fox"
            )
        if parts[1] in synsets:
            raise UserError(f"{path}: line {number}: {parts[1]} was already there; remove one")
        synsets[parts[1]] = parts[0]
    return synsets


def _read_meta(path: Path) -> dict[str, str]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"{path}: reading it needs scipy; install it, or put map_clsloc.txt of a later devkit "
            f"beside it"
        ) from None
    try:
        rows: Any = loadmat(path, squeeze_me=True)["synsets"]
        found = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows}
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: is no devkit's meta.mat ({error})") from None
    return {number: wnid for number, wnid in found.items() if int(number) <= NUM_LOW_LEVEL}

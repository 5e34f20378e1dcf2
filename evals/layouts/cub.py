"""Pairs of look-alikes: CUB-200-2011's woodpeckers, and pairs of a user's own.

    DIR/images.txt, image_class_labels.txt, classes.txt   `id value`, ids from 1
    DIR/images/187.American_Three_toed_Woodpecker/...     what images.txt names
    DIR/pairs.jsonl    {"group", "names": [a, b], "descriptions": [.., ..], "images": [[..], [..]]}

KOSMOS-1 took 20 pictures a bird and does not say which: here they are the first 20 by image id. Its
two other pairs were collected from the web and are not released, nor are its descriptions; both go
into `pairs.jsonl`, where the line of group `woodpecker` may leave `images` out.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from evals.layouts.files import Record, find_file, read_jsonl, read_text
from mllm.errors import UserError

GROUP = "woodpecker"
NAMES = ("three toed woodpecker", "downy woodpecker")
CLASSES = ("187.American_Three_toed_Woodpecker", "192.Downy_Woodpecker")
NUM_PICTURES = 20
PAIRS = "pairs.jsonl"


@dataclass(frozen=True, slots=True)
class Bird:
    """A picture of one of a pair; `place` says which."""

    id: str
    image_path: Path
    place: int


@dataclass(frozen=True, slots=True)
class Pair:
    """`descriptions` is None where the user gave none."""

    group: str
    names: tuple[str, str]
    descriptions: tuple[str, str] | None
    birds: tuple[Bird, ...]


def load(folder: Path) -> tuple[list[Pair], list[Path]]:
    """The pairs of `pairs.jsonl` and of CUB, whichever are there, and the files that name them."""
    pairs: dict[str, Pair] = {}
    files = []
    if (folder / PAIRS).is_file():
        files.append(folder / PAIRS)
        for row in read_jsonl(folder / PAIRS):
            pair = _pair(row, folder)
            if pair.group in pairs:
                raise row.error(f'"group" {pair.group} was already there; remove one')
            pairs[pair.group] = pair
    given = pairs.get(GROUP)
    if given is None and _has_cub(folder):
        pairs[GROUP] = Pair(GROUP, NAMES, None, _woodpeckers(folder))
        files.append(_cub_file(folder, "images.txt"))
    elif given is not None and not given.birds:
        pairs[GROUP] = replace(given, birds=_woodpeckers(folder))
        files.append(_cub_file(folder, "images.txt"))
    if not pairs:
        raise UserError(
            f"{folder / 'images.txt'}: no such file, and no {PAIRS}; unpack CUB_200_2011.tgz there"
        )
    return list(pairs.values()), files


def _pair(row: Record, folder: Path) -> Pair:
    group, names = row.text("group"), _two_texts(row, "names")
    described = row.fields.get("descriptions") is not None
    descriptions = _two_texts(row, "descriptions") if described else None
    if group == GROUP and "images" not in row.fields:
        return Pair(group, names, descriptions, ())
    lists = row.get("images", list)
    if len(lists) != 2 or not all(
        type(paths) is list and paths and all(type(path) is str for path in paths)
        for paths in lists
    ):
        raise row.error('"images" must be two lists of paths, one a name')
    birds = tuple(
        Bird(f"{group}/{place}/{number:03}", folder / path, place)
        for place, paths in enumerate(lists)
        for number, path in enumerate(paths)
    )
    if len({bird.image_path for bird in birds}) < len(birds):
        raise row.error('"images" names a picture twice')
    return Pair(group, names, descriptions, birds)


def _two_texts(row: Record, key: str) -> tuple[str, str]:
    values = row.get(key, list)
    if len(values) != 2 or not all(type(v) is str and v.strip() for v in values):
        raise row.error(f'"{key}" must be a list of 2 texts')
    return values[0].strip(), values[1].strip()


def _has_cub(folder: Path) -> bool:
    return (folder / "images.txt").is_file() or (folder / "CUB_200_2011/images.txt").is_file()


def _cub_file(folder: Path, name: str) -> Path:
    return find_file(folder, [name], "CUB-200-2011")


def _woodpeckers(folder: Path) -> tuple[Bird, ...]:
    images = _cub_file(folder, "images.txt")
    paths = _numbered(images)
    labels = _numbered(_cub_file(folder, "image_class_labels.txt"))
    classes = _numbered(_cub_file(folder, "classes.txt"))
    numbers = {name: str(number) for number, name in classes.items()}
    birds = []
    for place, name in enumerate(CLASSES):
        if name not in numbers:
            raise UserError(f"{_cub_file(folder, 'classes.txt')}: has no class {name}")
        ids = [image_id for image_id in paths if labels.get(image_id) == numbers[name]]
        if len(ids) < NUM_PICTURES:
            raise UserError(
                f"{images}: {len(ids)} pictures of {name}, must be {NUM_PICTURES} or more; unpack "
                f"CUB_200_2011.tgz again"
            )
        birds += [
            Bird(
                f"{GROUP}/{place}/{image_id:05}", images.parent / "images" / paths[image_id], place
            )
            for image_id in sorted(ids)[:NUM_PICTURES]
        ]
    return tuple(birds)


def _numbered(path: Path) -> dict[int, str]:
    """Lines of `id value`."""
    found: dict[int, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not key.isdigit() or not value:
            raise UserError(
                f"{path}: line {number}: is {line.strip()!r}, must be an id and a value"
            )
        if int(key) in found:
            raise UserError(f"{path}: line {number}: id {key} was already there; remove one")
        found[int(key)] = value
    return found

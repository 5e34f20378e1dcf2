"""HatefulMemes: one meme a line, `{"id", "img": "img/01243.png", "label": 0 | 1, "text"}`.

Scores are made on `dev_seen` (older copies: `dev`), as everyone's. Ids lose their leading zeros in
some copies, so the picture's name is the id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.layouts.files import Record, find_file, read_jsonl
from evals.layouts.images import Part
from mllm.errors import UserError

NAMES: dict[Part, Sequence[str]] = {
    "evaluation": ("dev_seen.jsonl", "dev.jsonl"),
    "training": ("train.jsonl",),
    "test": ("test_seen.jsonl", "test.jsonl"),
}


@dataclass(frozen=True, slots=True)
class Meme:
    """A picture and the words written on it.

    Args:
        id: The picture's file name without its ending, such as `01243`.
        label: Whether it is hateful; None where the file keeps it back.
    """

    id: str
    image_path: Path
    text: str
    label: bool | None


def load(folder: Path, part: Part) -> list[Meme]:
    path = find_file(folder, NAMES[part], "HatefulMemes")
    return read_memes(path)


def read_memes(path: Path) -> list[Meme]:
    """The memes of one file, whose `img` begins at the file's folder."""
    memes: dict[str, Meme] = {}
    for row in read_jsonl(path):
        meme = _meme(row, path.parent)
        if meme.id in memes:
            raise row.error(f'"img" {row.text("img")} was already there; remove one')
        memes[meme.id] = meme
    if not memes:
        raise UserError(f"{path}: is empty; download it again")
    return list(memes.values())


def _meme(row: Record, folder: Path) -> Meme:
    label = row.get("label", int) if "label" in row.fields else None
    if label not in (None, 0, 1):
        raise row.error(f'"label" is {label}, must be 0 or 1')
    image = row.text("img")
    return Meme(
        Path(image).stem, folder / image, row.text("text"), None if label is None else label == 1
    )

"""Transcripts: a conversation in one JSON file, its pictures inside it under their hashes.

A transcript names no file to be read: one from somebody else cannot make this program open what
lies on this machine. Its pictures go through the checks of any other picture.
"""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mllm.chat.conversation import MAIN_BRANCH, Answer, Branches, Content, Conversation, Shot, Turn
from mllm.chat.pictures import Picture, picture_of
from mllm.chat.sampling import Sampling
from mllm.command import printable
from mllm.errors import UserError
from mllm.files import write_json

FORMAT = "mllm chat"
VERSION = 1
MAX_BYTES = 1 << 30
MAX_PIXELS = 1 << 30  # of all pictures of a file: they are decoded one after another


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Image(_Strict):
    type: Literal["image"]
    sha256: str


_Content = list[Annotated[_Text | _Image, Field(discriminator="type")]]


class _Answer(_Strict):
    text: str
    settings: dict[str, float | int] = {}
    is_stopped: bool = False
    num_dropped: int = Field(0, ge=0)
    system: str = ""
    shots: list[int] = []  # places in the file's shots


class _Shot(_Strict):
    content: _Content
    answer: str


class _Turn(_Strict):
    content: _Content
    answer: _Answer | None = None
    attempt: int = Field(0, ge=0)


class _Branch(_Strict):
    system: str = ""
    shots: list[int] = []
    turns: list[_Turn] = []
    num_dropped: int = Field(0, ge=0)


class _Picture(_Strict):
    name: str
    data: str  # base64


class _Model(_Strict):
    name: str = ""
    fingerprint: str = ""


class _File(_Strict):
    format: Literal["mllm chat"]
    version: Literal[1]
    model: _Model = _Model()
    settings: dict[str, float | int] = {}
    current: str = MAIN_BRANCH
    branches: dict[str, _Branch] = Field(min_length=1)
    shots: list[_Shot] = []
    pictures: dict[str, _Picture] = {}


@dataclass
class Transcript:
    """What a file says.

    Args:
        model: `name` and `fingerprint` of the export that answered.
    """

    branches: Branches
    settings: Sampling
    model: dict[str, str] = field(default_factory=dict)


def to_json(transcript: Transcript) -> dict[str, Any]:
    """The file's value. Pictures stand last, so that the words can be read."""
    pictures: dict[str, dict[str, str]] = {}
    known_shots: list[Shot] = []

    def places(shots: list[Shot]) -> list[int]:
        for shot in shots:
            if shot not in known_shots:
                known_shots.append(shot)
        return [known_shots.index(shot) for shot in shots]

    def items(content: Content) -> list[dict[str, str]]:
        found = []
        for part in content:
            if isinstance(part, str):
                found.append({"type": "text", "text": part})
                continue
            data = base64.b64encode(part.data).decode()
            pictures[part.sha256] = {"name": printable(Path(part.name).name), "data": data}
            found.append({"type": "image", "sha256": part.sha256})
        return found

    def turn_value(turn: Turn) -> dict[str, Any]:
        value: dict[str, Any] = {"content": items(turn.content)}
        if turn.answer is not None:
            value["answer"] = vars(turn.answer) | {"shots": places(turn.answer.shots)}
        return value | {"attempt": turn.attempt}

    branches = {
        name: {
            "system": branch.system,
            "shots": places(branch.shots),
            "turns": [turn_value(turn) for turn in branch.turns],
            "num_dropped": branch.num_dropped,
        }
        for name, branch in transcript.branches.by_name.items()
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": transcript.model,
        "settings": transcript.settings.values,
        "current": transcript.branches.current,
        "branches": branches,
        "shots": [{"content": items(s.content), "answer": s.answer} for s in known_shots],
        "pictures": pictures,
    }


def from_json(text: str | bytes, name: str) -> Transcript:
    """A transcript from its file's text; every picture is decoded once and held against its hash.

    Args:
        name: of the file, for errors.

    Raises:
        UserError: not a transcript; the line names the place in it.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON ({error}); /load reads what /save wrote") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f'{name}: not a transcript (no "format": "{FORMAT}")')
    try:
        file = _File.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{name}: {place}: {first['msg']}; /load reads what /save wrote, and no paths"
        ) from None
    if file.current not in file.branches:
        raise UserError(f"{name}: current: no branch {file.current!r}")
    pictures, num_pixels = {}, 0
    for digest, entry in file.pictures.items():
        picture = _picture(digest, entry, f"{name}: picture {printable(digest[:12])}")
        num_pixels += picture.width * picture.height
        if num_pixels > MAX_PIXELS:
            raise UserError(f"{name}: its pictures have more than {MAX_PIXELS:,} pixels in all")
        pictures[digest] = picture

    def content(items: _Content) -> Content:
        parts: Content = []
        for item in items:
            if isinstance(item, _Text):
                parts.append(item.text)
            elif item.sha256 not in pictures:
                raise UserError(f"{name}: picture {printable(item.sha256[:12])} is not in the file")
            else:
                parts.append(pictures[item.sha256])
        return parts

    known_shots = [Shot(content(shot.content), shot.answer) for shot in file.shots]

    def shots(places: list[int]) -> list[Shot]:
        if wrong := [place for place in places if not 0 <= place < len(known_shots)]:
            raise UserError(f"{name}: shot {wrong[0]} is not in the file")
        return [known_shots[place] for place in places]

    def answer(said: _Answer | None) -> Answer | None:
        if said is None:
            return None
        return Answer(**said.model_dump() | {"shots": shots(said.shots)})

    branches = {}
    for key, branch in file.branches.items():
        if branch.num_dropped > len(branch.turns):
            raise UserError(f"{name}: branches.{printable(key)}.num_dropped: more than its turns")
        branches[key] = Conversation(
            branch.system,
            shots(branch.shots),
            [
                Turn(content(turn.content), answer(turn.answer), attempt=turn.attempt)
                for turn in branch.turns
            ],
            branch.num_dropped,
        )
    return Transcript(
        branches=Branches(branches, file.current),
        settings=sampling_of(file.settings, f"{name}: settings"),
        model=file.model.model_dump(),
    )


def _picture(digest: str, entry: _Picture, name: str) -> Picture:
    try:
        data = base64.b64decode(entry.data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name}: its data is not base64") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{name}: its data has another hash; the file was changed")
    return picture_of(data, printable(entry.name))


def sampling_of(values: dict[str, Any], name: str) -> Sampling:
    """Settings from a file.

    Raises:
        UserError: a value that no setting takes, or an unknown name.
    """
    try:
        return Sampling(**values)
    except TypeError:
        known = Sampling().values
        wrong = sorted(set(values) - set(known))
        raise UserError(
            f"{name}: no setting {printable(str(wrong[0]))!r}; one of {', '.join(known)}"
        ) from None
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def save(transcript: Transcript, path: str | Path) -> Path:
    """Writes the file, whole or not at all.

    Raises:
        UserError: the path is a folder, or a file that is no transcript.
        OSError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file, such as {path / 'chat.json'}")
    if path.exists() and not _is_transcript(path):
        raise UserError(f"{path}: exists and is no transcript; choose another name")
    write_json(path, to_json(transcript))
    return path


def _is_transcript(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return f'"format": "{FORMAT}"'.encode() in file.read(200)


def load(path: str | Path) -> Transcript:
    """The transcript in a file.

    Raises:
        UserError: no such file, or what `from_json` raises.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes")
        return from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be read'}") from None

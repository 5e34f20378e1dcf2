"""Files that users downloaded: each mistake is one line that names file, record, key and the mend.

A byte-order mark, CRLF and integer ids are common in the wild and read as if they were not there:
every id is a string here, 42 and "42" alike.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.errors import UserError

NUM_NAMED = 3  # ids or files that a message names
KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file, and the words for where it stands.

    Args:
        path: The file.
        place: Such as `line 7`, or `annotations record 3`: counted from 1.
        fields: The object's keys and values.
    """

    path: Path
    place: str
    number: int
    fields: dict[str, Any]

    def error(self, message: str) -> UserError:
        return UserError(f"{self.path}: {self.place} {self.number}: {message}")

    def get(self, key: str, *kinds: type) -> Any:
        """The value of a key that must be there, of one of these exact types (True is no int)."""
        try:
            value = self.fields[key]
        except KeyError:
            found = ", ".join(list(self.fields)[:8]) or "nothing"
            raise self.error(
                f'no "{key}" (found {found}); is this the file of another data set or version?'
            ) from None
        if type(value) not in kinds:
            wanted = " or ".join(KINDS[kind] for kind in kinds)
            raise self.error(f'"{key}" is {_shown(value)}, must be {wanted}')
        return value

    def text(self, key: str) -> str:
        return self.get(key, str)

    def identifier(self, key: str) -> str:
        """An id as a string, whether it was written as one or as an integer."""
        return str(self.get(key, int, str))

    def objects(self, key: str) -> "list[Record]":
        """The objects of a list inside this one."""
        place = f"{self.place} {self.number}, {key}"
        return list(_records(self.path, self.get(key, list), place))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, dict | list) else ""
    return text if 0 < len(text) <= 40 else KINDS.get(type(value), type(value).__name__)


def _records(path: Path, values: Iterable[Any], place: str) -> Iterator[Record]:
    for number, value in enumerate(values, start=1):
        if type(value) is not dict:
            raise UserError(f"{path}: {place} {number}: is {_shown(value)}, must be an object")
        yield Record(path, place, number, value)


def read_text(path: Path) -> str:
    """A UTF-8 file's text without a byte-order mark."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, must be a file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of the downloaded file") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: not UTF-8; is it still compressed?") from None


def read_json(path: Path, make_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """A file's value; `make_object` is given each object's pairs, to refuse a key twice."""
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except ValueError as error:
        if not text.strip():
            raise UserError(f"{path}: is empty; download it again") from None
        line = getattr(error, "lineno", 1)
        message = getattr(error, "msg", str(error))
        raise UserError(
            f"{path}: line {line}: not JSON ({message}); is the download whole?"
        ) from None


def json_records(path: Path, value: Any, key: str | None = None) -> Iterator[Record]:
    """The objects of a parsed file: of the list it is, or of the list under `key`."""
    if key is None:
        if type(value) is not list:
            raise UserError(f"{path}: holds {_shown(value)}, must be a list of objects")
        return _records(path, value, "record")
    if type(value) is not dict:
        raise UserError(f'{path}: holds {_shown(value)}, must be an object with "{key}"')
    if key not in value:
        found = ", ".join(list(value)[:8]) or "nothing"
        raise UserError(
            f'{path}: no "{key}" (found {found}); is this the file of another data set?'
        )
    if type(value[key]) is not list:
        raise UserError(f'{path}: "{key}" is {_shown(value[key])}, must be a list of objects')
    return _records(path, value[key], f"{key} record")


def read_jsonl(path: Path) -> Iterator[Record]:
    """The object of each line that is not blank."""
    # Not splitlines(): a string may hold U+2028, which is no line's end in JSON.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            message = getattr(error, "msg", str(error))
            raise UserError(f"{path}: line {number}: not JSON ({message})") from None
        if type(value) is not dict:
            raise UserError(f"{path}: line {number}: is {_shown(value)}, must be an object")
        yield Record(path, "line", number, value)


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """The rows of a CSV with a header, which must have `columns` in any order.

    Args:
        path: The file. Quoted fields may hold commas and line breaks; a record's number is the
            line of the file where it ends.
        columns: Those that are needed.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        missing = [column for column in columns if column not in header]
        if missing:
            found = ", ".join(header) or "nothing"
            raise UserError(
                f"{path}: line 1: no column {missing[0]!r} (found {found}); the header must name "
                + ", ".join(columns)
            )
        for row in reader:
            record = Record(path, "line", reader.line_num, row)
            if None in row or None in row.values():
                raise record.error(f"has not {len(header)} fields as the header has")
            yield record
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not CSV ({error})") from None


def by_id(records: Iterable[Record], key: str) -> dict[str, Record]:
    """Records by an id that each must have alone."""
    found: dict[str, Record] = {}
    for record in records:
        name = record.identifier(key)
        if name in found:
            first = found[name]
            raise record.error(
                f'"{key}" {name} was already in {first.place} {first.number}; remove one'
            )
        found[name] = record
    return found


def named(names: Iterable[Any]) -> str:
    """The first three of names, in the order given."""
    names = list(names)
    return ", ".join(map(str, names[:NUM_NAMED])) + (", ..." if len(names) > NUM_NAMED else "")


def find_file(folder: Path, names: Sequence[str], data_set: str) -> Path:
    """The file of a data set: in the folder itself, or in one of its folders.

    Args:
        folder: Where the user put the data set.
        names: What the file may be called, the usual name first.
        data_set: For the message, such as `VizWiz`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that {data_set} was unpacked in")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    for name in names:
        found = [path / name for path in below if (path / name).is_file()]
        if len(found) > 1:
            raise UserError(f"{found[0]} and {found[1]}: both could be {data_set}'s; remove one")
        if found:
            return found[0]
    others = f" (or {', '.join(names[1:])})" if names[1:] else ""
    raise UserError(
        f"{folder / names[0]}: no such file{others}; unpack {data_set}'s download there"
    )

"""Rows on disk: appended as they come, resumed by id, shared out over ranks, gathered once.

    OUT/{task}_{split}/k{K}/seed{S}/
      settings.json                  all that decides a row; a run of other settings is refused
      samples.jsonl                  a row a query, in the order of query ids
      samples.part-{R}-of-{W}.jsonl  what rank R of W has done, until all have

Which rank a batch belongs to follows from its place, and batches are formed over all queries before
they are dealt out, so rows do not depend on the number of ranks or on where a run was cut.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.errors import UserError
from mllm.files import json_text, name_full_disk, write_aside, write_json

Row = dict[str, Any]
PART = re.compile(r"samples\.part-\d+-of-\d+\.jsonl")


@dataclass(frozen=True)
class Share:
    """Which batches this process asks: those whose place is `rank` modulo `size`."""

    rank: int = 0
    size: int = 1

    def has(self, place: int) -> bool:
        return place % self.size == self.rank

    def file(self, folder: Path) -> Path:
        if self.size == 1:
            return folder / "samples.jsonl"
        return folder / f"samples.part-{self.rank}-of-{self.size}.jsonl"


def resume(
    folder: Path, settings: dict[str, Any], expected: Sequence[str], share: Share
) -> dict[str, Row]:
    """Rows already in `folder` by id, of whichever rank; a torn last line of ours is cut off.

    Raises:
        UserError: `folder` holds rows of other settings, or rows that do not belong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings_path = folder / "settings.json"
    files = [path for path in _files(folder) if path.stat().st_size > 0]
    if not files:
        write_json(settings_path, settings)
        return {}
    if not settings_path.exists():
        raise UserError(f"{settings_path} is missing beside its rows; remove {folder}")
    before = read_settings(settings_path)
    if before != settings:
        changed = [key for key in before | settings if before.get(key) != settings.get(key)]
        raise UserError(
            f"{files[0]} holds rows of other settings ({', '.join(changed)} changed); "
            f"name a new --out or remove {folder}"
        )
    own = share.file(folder)
    if own in files:
        _cut_torn_line(own)
    return _by_id(files, set(expected), folder)


def read_settings(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: The file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable JSON ({error}); remove {path.parent}") from None


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows at the end of a file, whole or, on a full disk, not at all.

    Raises:
        UserError: The disk is full or the file cannot be written.
    """
    lines = "".join(json_text(row) + "\n" for row in rows).encode()
    end = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab", buffering=0) as file:
            written = 0
            while written < len(lines):
                written += file.write(lines[written:])
    except OSError as error:
        if path.exists():
            with open(path, "r+b") as file:
                file.truncate(end)
        name_full_disk(error, path)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def gather(folder: Path, expected: Sequence[str]) -> list[Row]:
    """All rows in the order of `expected`; what several ranks wrote becomes one samples.jsonl.

    Raises:
        UserError: A row is missing, doubled or of no query.
    """
    files = _files(folder)
    rows = _by_id(files, set(expected), folder)
    if missing := [query_id for query_id in expected if query_id not in rows]:
        raise UserError(
            f"{folder}: {len(missing)} of {len(expected)} rows are missing, the first "
            f"{missing[0]!r}; run the same command again"
        )
    parts = [path for path in files if PART.fullmatch(path.name)]
    if parts:
        with write_aside(folder / "samples.jsonl") as file:
            for query_id in expected:
                file.write(json_text(rows[query_id]) + "\n")
        for path in parts:
            path.unlink()
    return [rows[query_id] for query_id in expected]


def _files(folder: Path) -> list[Path]:
    whole = folder / "samples.jsonl"
    parts = sorted(path for path in folder.glob("samples.part-*") if PART.fullmatch(path.name))
    return ([whole] if whole.exists() else []) + parts


def _by_id(files: Sequence[Path], expected: set[str], folder: Path) -> dict[str, Row]:
    by_id: dict[str, Row] = {}
    for path in files:
        rows = whole_rows(path)
        ids = {row["id"] for row in rows}
        if len(ids) < len(rows) or not ids <= expected:
            raise UserError(f"{path}: doubled or unknown ids; remove {folder} and run again")
        # A run cut between gathering and removing the parts has some rows in two files.
        by_id = {row["id"]: row for row in rows} | by_id
    return by_id


def whole_rows(path: Path) -> list[Row]:
    """The rows of a file of rows but a torn last one.

    Raises:
        UserError: A line is not JSON or has no id.
    """
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]  # rows may hold U+2028
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["id"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}: no row; remove {path.parent}") from None
        rows.append(row)
    return rows


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with open(path, "r+b") as file:
            file.truncate(whole)


def clusters(rows: Sequence[Row]) -> list[str]:
    """The picture that each row is about, or the row itself: what standard errors cluster by."""
    return [row.get("pictures") or row["id"] for row in rows]

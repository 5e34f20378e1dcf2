"""Rows as dicts from parquet, JSON lines, a JSON list and CSV, a batch at a time."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.pipeline.readers.base import BadRecord, ReadLog
from corpora.pipeline.readers.streams import (
    BROKEN,
    MAX_LINE,
    line_parts,
    lines,
    open_stream,
    plain_suffix,
)
from corpora.pipeline.units import Part
from mllm.errors import UserError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_BATCH = 64  # rows; with pictures of 1 MB that is 64 MB
BLOCK = 1 << 20  # characters


def row_suffixes(*plain: str) -> tuple[str, ...]:
    """The endings, also compressed; parquet compresses within."""
    compressed = (f"{s}{c}" for s in plain if s != ".parquet" for c in (".gz", ".zst", ".bz2"))
    return (*plain, *compressed, *(f"{s}{c}" for s in plain for c in (".xz", ".zip")))


def row_parts(path: Path, unit_bytes: int, root: Path) -> Iterator[Part]:
    """Row groups of parquet, byte ranges of JSON lines; whole files of what cannot be cut."""
    match plain_suffix(path):
        case ".parquet":
            yield from _row_groups(path, unit_bytes, root)
        case ".jsonl" | ".ndjson":
            yield from line_parts(path, unit_bytes, root)
        case ".json" if not _is_list(path):
            yield from line_parts(path, unit_bytes, root)
        case _:
            yield Part(str(path), path.stat().st_size, root=str(root))


def rows(part: Part, log: ReadLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for each row that can be read; the others go to the log."""
    path = Path(part.path)
    match plain_suffix(path):
        case ".parquet":
            yield from _parquet_rows(part, log)
        case ".csv":
            yield from _csv_rows(part, log)
        case ".json" if _is_list(path):
            yield from _list_rows(part, log)
        case _:
            yield from _json_lines(part, log)


def first_row(path: Path) -> dict[str, Any]:
    """The first readable row; empty when there is none."""
    if plain_suffix(path) == ".parquet":
        return parquet_columns(path)
    part = Part(str(path), path.stat().st_size)
    return next((row for _, row in rows(part, ReadLog())), {})


def parquet_columns(path: Path) -> dict[str, Any]:
    """Column names of a parquet file to their Arrow types; empty when its footer is cut."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid:
        return {}
    return dict(zip(schema.names, schema.types, strict=True))


def column(found: dict[str, Any], wanted: str, usual: tuple[str, ...], flag: str, at: Path) -> str:
    """The column to read: the one wanted, or the first of the usual names that is there.

    Raises:
        UserError: It is missing; names the columns that are there, and the flag.
    """
    for name in (wanted,) if wanted else usual:
        if name in found:
            return name
    there = ", ".join(found) or "none"
    asked = repr(wanted) if wanted else " or ".join(map(repr, usual))
    raise UserError(f"{at}: no column {asked}; its columns are {there}; name one with {flag}")


def _row_groups(path: Path, unit_bytes: int, root: Path) -> Iterator[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowInvalid:
        yield Part(str(path), size, root=str(root))  # reading it will say what is wrong
        return
    start = held = 0
    for group in range(metadata.num_row_groups):
        held += sum(
            metadata.row_group(group).column(i).total_compressed_size
            for i in range(metadata.num_columns)
        )
        if held >= unit_bytes or group == metadata.num_row_groups - 1:
            yield Part(str(path), held, start, group + 1, str(root))
            start, held = group + 1, 0


def _parquet_rows(part: Part, log: ReadLog) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = Path(part.path).name
    try:
        with pq.ParquetFile(part.path) as file:
            groups = range(part.start, file.num_row_groups if part.stop is None else part.stop)
            total = max(sum(file.metadata.row_group(g).num_rows for g in groups), 1)
            first = sum(file.metadata.row_group(g).num_rows for g in range(part.start))
            number = 0
            for batch in file.iter_batches(PARQUET_BATCH, row_groups=list(groups)):
                for row in _batch_rows(batch):
                    number += 1
                    log.bytes_in_part = part.size * number // total
                    where = f"{name} row {first + number - 1}"
                    if isinstance(row, dict):
                        yield where, row
                    else:
                        log.drop("a column has no value in Python", where, str(row))
    except pa.ArrowInvalid as error:
        log.breaks_off(part.path, error)
    except OSError as error:
        if error.errno is not None:  # the disk's, not pyarrow's word for damaged pages
            raise
        log.breaks_off(part.path, error)


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """Rows of an Arrow batch, or why one cannot be had: text not UTF-8, a date out of range."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for number in range(len(batch)):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield error


def _json_lines(part: Part, log: ReadLog) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in lines(part, log):
        if not line.strip():
            continue
        try:
            yield where, parse_object(line)
        except BadRecord as bad:
            log.drop(bad.reason, where, bad.excerpt)


def parse_object(line: bytes) -> dict[str, Any]:
    """A line's JSON object. BadRecord when it is none."""
    import orjson

    try:
        value = orjson.loads(line)
    except ValueError:
        try:  # Python's takes NaN, which Python's own writer writes
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise BadRecord("not JSON", line[:200].decode(errors="replace")) from None
    if not isinstance(value, dict):
        raise BadRecord("not a JSON object", line[:200].decode(errors="replace"))
    return value


def _is_list(path: Path) -> bool:
    """Whether a .json file is one list rather than a line an object."""
    try:
        with open_stream(path) as file:
            return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    except BROKEN:
        return False


def _list_rows(part: Part, log: ReadLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list, one at a time, so that a list of gigabytes takes no memory."""
    name = Path(part.path).name
    number = 0
    try:
        for value in _list_items(Path(part.path)):
            where = f"{name} entry {number}"
            number += 1
            if isinstance(value, dict):
                yield where, value
            else:
                log.drop("not a JSON object", where, repr(value)[:200])
    except (*BROKEN, ValueError, RecursionError) as error:  # ValueError: JSON or UTF-8
        log.breaks_off(part.path, error)


def _list_items(path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    with open_stream(path) as file:
        decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        text, place, is_whole, block = "", 0, False, BLOCK
        while not text.strip():
            text = decode(file.read(BLOCK))
        place = text.index("[") + 1
        while True:
            while place < len(text) and text[place] in " \t\r\n,":
                place += 1
            if place < len(text) and text[place] == "]":
                return
            try:
                value, place = decoder.raw_decode(text, place)
                block = BLOCK
                yield value
                continue
            except json.JSONDecodeError:
                if is_whole or len(text) - place > MAX_LINE:
                    raise
            data = file.read(block)
            is_whole = not data
            text, place = text[place:] + decode(data, is_whole), 0
            block *= 2  # a long entry is tried again few times


def _csv_rows(part: Part, log: ReadLog) -> Iterator[tuple[str, dict[str, Any]]]:
    path = Path(part.path)
    csv.field_size_limit(MAX_LINE)
    try:
        with (
            open_stream(path) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
        ):
            reader = csv.DictReader(text, strict=True)
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    if "unexpected end" in str(error):  # a quote that nothing closes
                        log.breaks_off(part.path, error)
                        return
                    log.drop("not CSV", f"{path.name} line {reader.line_num}", str(error))
                    continue
                where = f"{path.name} line {reader.line_num}"
                if None in row or None in row.values():
                    log.drop("wrong number of fields", where, ",".join(map(str, row.values())))
                    continue
                yield where, row
    except (*BROKEN, UnicodeDecodeError) as error:
        log.breaks_off(part.path, error)

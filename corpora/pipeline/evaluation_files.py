"""Texts and pictures of evaluation files, whatever they are spelled like.

    .txt .md                      the whole file as one text
    .json .jsonl .csv .tsv        every string in it; and those of one object or line joined, as a
                                  question and its answer may stand together elsewhere
    .parquet                      the same, and its pictures ({"bytes": ...} columns)
    .jpg .png ...                 a picture
    .tar                          its members, by the rules above (our shards are that)
    a folder                      all of these in it, at any depth

Text files may end in .gz or .zst. Unlike training data, a broken file here is an error: what is
not read is not searched for.
"""

import csv
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from corpora.document import IMAGE_EXTENSIONS
from mllm.errors import UserError

Item = str | bytes  # a text, or an encoded picture
TEXTS = ("txt", "md", "json", "jsonl", "csv", "tsv")
BROKEN = (zlib.error, tarfile.TarError, csv.Error)
KNOWN = (*TEXTS, "parquet", "tar", *IMAGE_EXTENSIONS)


def evaluation_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files that `paths` name, folders walked, sorted within each.

    Raises:
        UserError: A path is not there, is of no known kind, or is a folder without such files.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inner = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p.name) in KNOWN)
            if not inner:
                raise UserError(f"{path}: no evaluation files in it; known are {', '.join(KNOWN)}")
            found += inner
        elif not path.exists():
            raise UserError(f"{path}: no such evaluation file")
        elif _kind(path.name) not in KNOWN:
            raise UserError(f"{path}: not a kind of evaluation file; known are {', '.join(KNOWN)}")
        else:
            found.append(path)
    return found


def items(path: Path) -> Iterator[Item]:
    """Everything a file holds.

    Raises:
        UserError: The file is broken.
    """
    try:
        kind = _kind(path.name)
        if kind == "tar":
            yield from _tar_items(path)
        elif kind == "parquet":
            yield from _parquet_items(path)
        elif kind in IMAGE_EXTENSIONS:
            yield path.read_bytes()
        else:
            with fsspec.open(str(path), "rb", compression="infer") as file:
                yield from _text_items(kind, file)
    except (OSError, ValueError, RecursionError, EOFError, *BROKEN) as error:
        raise UserError(f"{path}: broken evaluation file ({error})") from None


def _kind(name: str) -> str:
    parts = name.lower().rsplit("/", 1)[-1].split(".")
    if len(parts) > 2 and parts[-1] in ("gz", "zst"):
        parts.pop()
    return parts[-1] if len(parts) > 1 else ""


def _text_items(kind: str, file: Any) -> Iterator[Item]:
    if kind == "jsonl":
        for line in file:
            if line.strip():
                yield from _strings(json.loads(line))
        return
    if kind == "json":
        yield from _strings(json.loads(file.read()))
        return
    text = file.read().decode("utf-8-sig")
    if kind in ("csv", "tsv"):
        for row in csv.reader(io.StringIO(text), delimiter="\t" if kind == "tsv" else ","):
            yield from _strings(dict(enumerate(row)))
    else:
        yield text


def _tar_items(path: Path) -> Iterator[Item]:
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            kind = _kind(member.name)
            if not member.isfile() or kind not in (*TEXTS, *IMAGE_EXTENSIONS):
                continue
            file = tar.extractfile(member)
            assert file is not None  # a regular file
            data = file.read()
            if len(data) < member.size:
                raise tarfile.ReadError(f"cut short in {member.name}")
            if kind in IMAGE_EXTENSIONS:
                yield data
            else:
                yield from _text_items(kind, io.BytesIO(data))


def _parquet_items(path: Path) -> Iterator[Item]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(256):
            for row in batch.to_pylist():
                yield from _strings(row)


def _strings(value: Any) -> Iterator[Item]:
    """Every string and bytes in a JSON value, and the strings of each object joined."""
    if isinstance(value, str | bytes):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
    elif isinstance(value, dict):
        own = [each for each in value.values() if isinstance(each, str)]
        if len(own) > 1:
            yield "\n".join(own)
        for each in value.values():
            yield from _strings(each)

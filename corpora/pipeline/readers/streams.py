"""Lines of files, compressed or not, in bounded memory; ranges of plain ones by byte.

datatrove's own JSON-lines reader logs broken lines and passes on, takes a cut zst file for whole
and knows no ranges; an import has to count each of them, so it reads lines here.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from corpora.pipeline.readers.base import ReadLog
from corpora.pipeline.units import Part

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz", ".zip")
MAX_LINE = 256 << 20  # bytes; a longer line is dropped
BLOCK = 1 << 12  # bytes of zstd unpacked at once: a hostile one grows 30,000 times

# What the decompressors raise on files that are cut or damaged.
BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile)


def plain_suffix(path: Path) -> str:
    """The ending without compression: ".jsonl" for a.jsonl.zst."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(COMPRESSIONS)


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading decompressed bytes. Reading raises one of BROKEN where it is cut."""
    with open(path, "rb") as file:
        match path.suffix.lower():
            case ".gz":
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream  # type: ignore[misc]
            case ".bz2":
                with bz2.BZ2File(file) as bz2_stream:
                    try:
                        yield bz2_stream
                    except OSError as error:
                        if error.errno is not None:
                            raise
                        raise EOFError(str(error)) from None  # damaged, where others say zlib.error
            case ".xz":
                with lzma.LZMAFile(file) as xz_stream:
                    yield xz_stream
            case ".zst":
                yield io.BufferedReader(_Zstd(file), 1 << 18)
            case ".zip":
                with zipfile.ZipFile(file) as archive, archive.open(_only(archive)) as member:
                    yield member
            case _:
                yield file


def _only(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise zipfile.BadZipFile(f"holds {len(members)} files, not one")
    return members[0]


class _Zstd(io.RawIOBase):
    """Reads zstd frames in a row and says when the last one is cut, which zstandard does not."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None
        self._rest = memoryview(b"")  # decompressed, not yet read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and self._fill():
            pass
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def _fill(self) -> bool:
        import zstandard

        block = b"" if self._frame is None else self._frame.unused_data
        block = block or self._file.read(BLOCK)
        if not block:
            if self._frame is not None and not self._frame.eof:
                raise EOFError("the last zstd frame is cut")
            return False
        if self._frame is None or self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._rest = memoryview(self._frame.decompress(block))
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        return True


def line_parts(path: Path, unit_bytes: int, root: Path) -> Iterator[Part]:
    """A plain file in ranges of `unit_bytes`; a compressed one cannot be cut."""
    size = path.stat().st_size
    if is_compressed(path) or size <= unit_bytes:
        yield Part(str(path), size, root=str(root))
        return
    for start in range(0, size, unit_bytes):
        stop = min(start + unit_bytes, size)
        yield Part(str(path), stop - start, start, stop, str(root))


def lines(part: Part, log: ReadLog) -> Iterator[tuple[str, bytes]]:
    """(where, line) for each line that begins within the part, without its line end."""
    path = Path(part.path)
    number = 0
    try:
        with open_stream(path) as file:
            place = part.start
            if part.start:
                # A line belongs to the part in which it begins; the one before reads it whole.
                file.seek(part.start - 1)
                place += len(file.readline()) - 1
            while part.stop is None or place < part.stop:
                line = file.readline(MAX_LINE)
                if not line:
                    return
                number += 1
                place += len(line)
                where = f"{path.name} line {number}"
                if part.start:
                    where += f" after byte {part.start}"
                if len(line) == MAX_LINE and not line.endswith(b"\n"):
                    log.drop("line too long", where)
                    while (more := file.readline(MAX_LINE)) and not more.endswith(b"\n"):
                        place += len(more)
                    place += len(more)
                    continue
                log.bytes_in_part = min(place - part.start, part.size)
                yield where, line.rstrip(b"\r\n")
    except BROKEN as error:
        log.breaks_off(part.path, error)

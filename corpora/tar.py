"""Walks a tar shard from front to back: where each member lies, and samples with their bytes.

Python's `tarfile` spends more time on a header than hashing a picture takes. Plain headers (the
members that webdataset, img2dataset and GNU tar write for short names) are read here; every other
header goes to `tarfile` at its offset, so both give the same members.
"""

import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from corpora.storage import ShardFile

TAR_BLOCK = 512
READ_BYTES = 1 << 20  # read at once; more only costs page faults on a local disk
REMOTE_READ_BYTES = 16 << 20  # a request has a price and a latency
MAX_HEADER_BYTES = 1 << 20  # of a long name or a pax record, which are held in memory
MAX_MEMBER_BYTES = (1 << 32) - 1
MAX_OFFSET = ((1 << 32) - 1) * TAR_BLOCK  # an index counts blocks in four bytes
ZERO_BLOCK = bytes(TAR_BLOCK)

REGULAR, PAX_HEADER = b"0\0", ord("x")
HARMLESS_RECORDS = frozenset({b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname"})

# Records of a global pax header that would change every later member.
GLOBAL_RECORDS = ("path", "size", "linkpath", "hdrcharset", "GNU.sparse")

COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)


class BrokenTar(Exception):
    """Why a file is no whole, plain tar."""


class Member(NamedTuple):
    """A regular file of a tar.

    Bytes of a name that are not UTF-8 are spelt `\\xNN`, so that every name can be printed.
    """

    name: str
    offset: int  # of its data, in bytes; a multiple of 512
    size: int  # bytes
    fault: str | None = None  # why its data cannot be indexed


class TarSample(NamedTuple):
    """Consecutive members that share everything before the first dot of the file name."""

    key: str
    places: dict[str, tuple[int, int]]  # extension (lower case) to (offset, size), in bytes
    members: dict[str, bytes]  # the same extensions
    faults: list[str]  # members left out, and why


def read_samples(file: ShardFile, read_bytes: int = READ_BYTES) -> Iterator[TarSample]:
    """Yields the samples of a shard in order, grouped as webdataset does.

    Args:
        file: The shard; read once from front to back.
        read_bytes: Bytes of one read.

    Raises:
        BrokenTar: The shard is truncated, compressed or no tar file.
        OSError: The disk or the network failed.
    """
    window = _Window(file, read_bytes)
    sample: TarSample | None = None
    for member in _walk(window):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not stem or not dot:
            continue
        key, extension = folder + slash + stem, extension.lower()
        if sample is None or key != sample.key or extension in sample.places:
            if sample is not None:
                yield sample
            sample = TarSample(key, {}, {}, [])
        if member.fault is not None:
            sample.faults.append(f"{key}.{extension}: {member.fault}")
            continue
        sample.places[extension] = (member.offset, member.size)
        sample.members[extension] = window.at(member.offset, member.size)
    if sample is not None:
        yield sample


def read_members(file: ShardFile) -> Iterator[Member]:
    """Yields the regular files of a tar in order; folders, links and devices are passed over."""
    return _walk(_Window(file, READ_BYTES))


class _Window:
    """A block of a shard that moves forward; also the file that `tarfile` reads headers from."""

    def __init__(self, file: ShardFile, read_bytes: int) -> None:
        self.size = file.size
        self._file, self._read_bytes = file, read_bytes
        self._block, self._start = b"", 0
        self._position = 0
        self.pax_sizes: dict[bytes, int] = {}  # headers that were sound, and their sizes

    def at(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer at the end of the shard."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._block):
            self._move(offset, size)
            begin = 0
        return self._block[begin : begin + size]

    def _move(self, offset: int, size: int) -> None:
        begin = offset - self._start
        kept = self._block[begin:] if 0 <= begin < len(self._block) else b""
        wanted = max(self._read_bytes, size) - len(kept)
        wanted = min(wanted, self.size - offset - len(kept))
        self._block = kept + self._file.read(offset + len(kept), wanted) if wanted > 0 else kept
        self._start = offset

    def seek(self, offset: int) -> None:
        self._position = offset

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise BrokenTar(f"a header of {size:,} bytes")
        data = self.at(self._position, size)
        self._position += len(data)
        return data


def _walk(window: _Window) -> Iterator[Member]:
    offset = 0
    while True:
        header = window.at(offset, TAR_BLOCK)
        if header == ZERO_BLOCK:
            return
        if len(header) < TAR_BLOCK:
            reason = "cut inside a header" if header else "no end-of-archive block"
            raise BrokenTar(_compression(window) or reason)
        member: Member | None
        if plain := _plain_member(window, header, offset):
            member = plain
            offset = member.offset + _padded(member.size)
        else:
            member, offset = _other_member(window, offset)
        if member is None:
            continue
        if member.offset > MAX_OFFSET:
            raise BrokenTar("longer than 2 TiB; split it")
        if member.offset + member.size > window.size:
            raise BrokenTar(f"cut inside {member.name}")
        if member.size > MAX_MEMBER_BYTES:
            member = member._replace(fault=f"{member.size:,} bytes; a member has less than 4 GiB")
        yield member


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def _plain_member(window: _Window, header: bytes, offset: int) -> Member | None:
    """A regular file from its header, with or without a pax header of times; None for others."""
    if header[156] == PAX_HEADER:
        # What Python's tarfile, thus webdataset and img2dataset, writes before every member: the
        # same bytes again and again, but for the times in the records.
        size = window.pax_sizes.get(header)
        if size is None:
            size = _plain_size(header)
            if size is None or size > MAX_HEADER_BYTES:
                return None
            if len(window.pax_sizes) < 100:
                window.pax_sizes[header] = size
        if not _is_harmless(window.at(offset + TAR_BLOCK, size)):
            return None
        offset += TAR_BLOCK + _padded(size)
        header = window.at(offset, TAR_BLOCK)
        if len(header) < TAR_BLOCK:
            return None
    if header[156] not in REGULAR:
        return None
    size = _plain_size(header)
    if size is None:
        return None
    name = _printable(header[:100].split(b"\0", 1)[0])
    if header[345]:
        name = _printable(header[345:500].split(b"\0", 1)[0]) + "/" + name
    if header[156] == 0 and name.endswith("/"):  # how the oldest tars spell a folder
        return None
    return Member(name, offset + TAR_BLOCK, size)


def _plain_size(header: bytes) -> int | None:
    """The size in a header whose numbers are octal and whose checksum holds; else None."""
    field = header[148:156]
    try:
        size = int(header[124:136].split(b"\0", 1)[0] or b"0", 8)
        checksum = int(field.split(b"\0", 1)[0] or b"0", 8)
    except ValueError:
        return None
    # The sum of all bytes, with the checksum's own taken as spaces; adler32 holds 1 + the sum
    # modulo 65,521 and costs a twentieth of sum().
    expected = 1 + checksum - 8 * 32 + sum(field)
    is_sound = zlib.adler32(header) & 0xFFFF == expected % 65521
    return size if is_sound and size >= 0 else None


def _is_harmless(records: bytes) -> bool:
    """Whether pax records say nothing of name, place or size."""
    if records[2:9] == b" mtime=" and records[:2] == b"%d" % len(records):
        return records.endswith(b"\n")  # a time alone, the usual case
    start = 0
    while start < len(records):
        length, space, rest = records[start : start + 64].partition(b" ")
        keyword, equals, _ = rest.partition(b"=")
        if not space or not equals or not length.isdigit() or keyword not in HARMLESS_RECORDS:
            return False
        stop = start + int(length)
        if records[stop - 1 : stop] != b"\n" or stop <= start + len(length) + len(keyword) + 2:
            return False
        start = stop
    return True


def _other_member(window: _Window, offset: int) -> tuple[Member | None, int]:
    """(member, offset of the next header) as `tarfile` has it; None for what is no file."""
    window.seek(offset)
    try:
        tar = tarfile.TarFile(fileobj=window, mode="r", encoding="utf-8")  # type: ignore[arg-type]
        found = tar.firstmember  # type: ignore[attr-defined]
        following: int = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, IndexError) as error:
        raise BrokenTar(_compression(window) or str(error) or type(error).__name__) from None
    if found is None or found.size < 0 or following <= offset:
        raise BrokenTar(f"invalid header at byte {offset:,}")
    changed = [name for name in tar.pax_headers if name.startswith(GLOBAL_RECORDS)]
    if changed:
        raise BrokenTar(f"a global header sets {changed[0]} of every member")
    if not found.isreg():
        return None, following
    name = _printable(found.name.encode("utf-8", "surrogateescape"))
    if found.issparse():
        return Member(name, found.offset_data, 0, "a sparse file, whose data has holes"), following
    return Member(name, found.offset_data, found.size), following


def _compression(window: _Window) -> str | None:
    """What to do about a shard that starts as compressed ones do."""
    first = window.at(0, 8)
    names = [name for magic, name in COMPRESSED if first.startswith(magic)]
    return f"compressed with {names[0]}; unpack it first" if names else None


def _printable(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")

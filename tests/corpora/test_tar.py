"""Members as `tarfile` has them, samples as webdataset has them, and every cut noticed."""

import io
import itertools
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corpora.tar import BrokenTar, Member, read_members, read_samples


class Bytes:
    """A shard in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, size: int) -> bytes:
        assert offset >= 0 and size > 0 and offset + size <= self.size, "reads beyond the shard"
        return self.data[offset : offset + size]


def as_tarfile_has_it(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as tar:
        return [
            Member(
                member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                member.offset_data,
                member.size,
            )
            for member in tar
            if member.isreg()
        ]


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


PLAIN = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE]
OTHERS = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
NAMES = st.one_of(
    st.text("ab./é漢🙂 \\", min_size=1, max_size=12),
    st.builds(
        lambda part, times: "/".join([part] * times), st.text("xyß", min_size=1), st.just(40)
    ),
    st.builds(lambda letter, length: letter * length, st.sampled_from("aé"), st.integers(95, 300)),
)
MEMBERS = st.tuples(
    NAMES,
    st.sampled_from(PLAIN * 3 + OTHERS),
    st.integers(0, 1300),  # size
    st.sampled_from([0, 1_700_000_000, 1_700_000_000.25, -5, 8**11 + 3]),  # mtime
    st.sampled_from([0, 1000, 8**7 + 1]),  # uid; the last needs base 256 or a pax record
    st.sampled_from(["", "root", "jörg" * 12]),
    st.sampled_from([{}, {"comment": "12 path=evil.txt"}, {"SCHILY.xattr.user": "a\nb"}]),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(MEMBERS, min_size=1, max_size=7),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from([None, {"comment": "x"}]),
)
def test_members_are_those_of_tarfile(members, tar_format, global_headers):
    buffer = io.BytesIO()
    headers = global_headers if tar_format == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format, pax_headers=headers) as tar:
        for name, kind, size, mtime, uid, owner, records in members:
            if kind == tarfile.AREGTYPE and (len(name.encode()) > 99 or name.endswith("/")):
                kind = tarfile.REGTYPE  # whose names in the oldest tars may spell folders
            data = bytes([size % 251]) * size if kind in PLAIN else b""
            fields = {"type": kind, "mtime": mtime, "uid": uid, "uname": owner}
            try:
                add(tar, name, data, linkname="t" * (size // 8), pax_headers=records, **fields)
            except ValueError:
                continue  # USTAR has no room for the name or a number
    data = buffer.getvalue()
    assert list(read_members(Bytes(data))) == as_tarfile_has_it(data)


@pytest.fixture(scope="module", params=["plain", "times", "names"])
def archive(request) -> bytes:
    """A few members in each of the ways a header is read, without the padding at the end."""
    buffer = io.BytesIO()
    tar_format = tarfile.GNU_FORMAT if request.param == "plain" else tarfile.PAX_FORMAT
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for number, size in enumerate((3, 512, 700)):
            name = "long/" * 30 * (request.param == "names") + f"{number}.txt"
            add(tar, name, b"x" * size, mtime=1.5 if request.param == "times" else 1)
        end = tar.offset
    return buffer.getvalue()[: end + 512]


def test_a_cut_at_any_byte_is_one_clear_line(archive):
    assert len(list(read_members(Bytes(archive)))) == 3
    for length in range(len(archive)):
        with pytest.raises(BrokenTar) as caught:
            list(read_members(Bytes(archive[:length])))
        assert str(caught.value) and "\n" not in str(caught.value)


def test_a_changed_byte_of_a_header_is_noticed(archive):
    places = [member.offset - 512 for member in read_members(Bytes(archive))]
    for place, byte in itertools.product(places, range(0, 512, 7)):
        changed = bytearray(archive)
        changed[place + byte] ^= 0x41
        with pytest.raises(BrokenTar):
            list(read_members(Bytes(bytes(changed))))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_raise_anything_else(data):
    """Random damage, with the checksums made good again so that it is looked at."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "a" * 120 + ".txt", b"x" * 600, mtime=1.5)
        add(tar, "b.txt", b"y", mtime=2.5)
    archive = bytearray(buffer.getvalue()[:8192])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at] = data.draw(st.integers(0, 255))
        block = archive[at // 512 * 512 : at // 512 * 512 + 512]
        block[148:156] = b" " * 8
        archive[at // 512 * 512 + 148 : at // 512 * 512 + 156] = b"%06o\0 " % sum(block)
    try:
        found = list(read_members(Bytes(bytes(archive))))
    except BrokenTar as error:
        assert "\n" not in str(error)
    else:
        assert all(m.offset >= 0 and m.offset + m.size <= len(archive) for m in found)


@given(st.binary(max_size=3000))
@example(b"")
@example(b"\x1f\x8b\x08\x00" + bytes(600))
def test_what_is_no_tar_is_refused(data):
    if data[:512] != bytes(512):
        with pytest.raises(BrokenTar):
            list(read_samples(Bytes(data)))


def test_a_compressed_shard_is_named_as_such():
    import gzip

    with pytest.raises(BrokenTar, match="compressed with gzip; unpack it first"):
        list(read_samples(Bytes(gzip.compress(bytes(range(256)) * 20))))


def test_a_global_header_that_moves_members_is_refused():
    buffer = io.BytesIO()
    headers = {"path": "same.txt"}
    with tarfile.open(fileobj=buffer, mode="w", pax_headers=headers) as tar:
        add(tar, "a.txt", b"x")
    with pytest.raises(BrokenTar, match="global header sets path of every member"):
        list(read_members(Bytes(buffer.getvalue())))


def test_samples_are_those_of_webdataset(tmp_path):
    import webdataset

    names = ["a.txt", "a.JPG", "d.x/b.seg.png", "d.x/b.txt", "none", "_.txt", "c..txt", "a.txt"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            add(tar, name, name.encode())
    data = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)
    theirs = [
        (sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
        for sample in data
    ]
    ours = read_samples(Bytes((tmp_path / "a.tar").read_bytes()))
    assert [(sample.key, sample.members) for sample in ours] == theirs


def test_names_that_are_not_utf8_are_spelt_with_escapes():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "caf\udce9.txt", b"latin-1")
        add(tar, "caf\udce9" * 40 + ".txt", b"latin-1, long")
    samples = list(read_samples(Bytes(buffer.getvalue())))
    assert [sample.key for sample in samples] == ["caf\\xe9", "caf\\xe9" * 40]
    assert samples[0].members == {"txt": b"latin-1"}


def test_a_member_of_four_gib_is_left_out_by_name():
    info = tarfile.TarInfo("big.bin")
    info.size = 4 << 30
    small = tarfile.TarInfo("big.txt")
    small.size = 1
    zeros = bytes(512)

    class Sparse:
        """The archive without its zeros in memory."""

        size = 512 + info.size + 3 * 512

        def read(self, offset: int, size: int) -> bytes:
            assert size <= 1 << 20, "reads the member itself"
            head = info.tobuf(tarfile.GNU_FORMAT)
            tail = small.tobuf(tarfile.GNU_FORMAT) + b"!".ljust(512, b"\0") + zeros
            blocks = head.ljust(offset + size, b"\0") if offset < 512 else tail
            start = offset if offset < 512 else offset - 512 - info.size
            return blocks[start : start + size]

    (sample,) = read_samples(Sparse())
    assert sample.members == {"txt": b"!"}
    assert sample.faults == ["big.bin: 4,294,967,296 bytes; a member has less than 4 GiB"]


def test_a_sparse_file_is_left_out_by_name():
    info = tarfile.TarInfo("hole.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (1024, 512)  # one run of data after a hole
    header[483:495] = b"%011o\0" % 1536
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (sample,) = read_samples(Bytes(bytes(header) + b"x" * 512 + bytes(1024)))
    assert sample.members == {}
    assert "hole.txt: a sparse file" in sample.faults[0]

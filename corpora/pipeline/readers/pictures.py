"""Pictures that records name: in a folder, a tar or a zip, or spelt out in base64."""

import base64
import binascii
import os
import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path

from corpora.document import ImageSegment
from corpora.pipeline.readers.base import BadRecord, picture
from corpora.pipeline.readers.streams import BROKEN
from mllm.errors import UserError

MAX_BYTES = 256 << 20  # of one encoded picture


class Pictures:
    """Encoded pictures by name. Names come from foreign files, so none leads out of the place."""

    def __init__(self, place: str | Path) -> None:
        """Opens a folder, .tar or .zip. UserError when it is neither."""
        self.place = Path(place)
        self._tar: dict[str, tuple[int, int]] | None = None  # name: (offset, size)
        self._zip: zipfile.ZipFile | None = None
        if self.place.is_dir():
            self._root = os.path.realpath(self.place)
        elif self.place.suffix == ".tar" and self.place.is_file():
            self._tar = _tar_places(self.place)
        elif self.place.suffix == ".zip" and self.place.is_file():
            try:
                self._zip = zipfile.ZipFile(self.place)
            except zipfile.BadZipFile as error:
                raise UserError(f"{self.place}: not a whole zip file ({error})") from None
        else:
            raise UserError(
                f"{self.place}: no folder, .tar or .zip of pictures there (--image-dir)"
            )

    def get(self, name: str) -> ImageSegment:
        """The picture of that name. BadRecord when it is missing, outside, or no picture."""
        if self._tar is not None:
            return picture(self._from_tar(name))
        if self._zip is not None:
            return picture(self._from_zip(name))
        try:
            path = os.path.realpath(os.path.join(self._root, name))
        except ValueError:  # a NUL byte, half a surrogate pair
            raise BadRecord("picture missing", ascii(name)) from None
        if not path.startswith(self._root + os.sep):
            raise BadRecord("picture outside of --image-dir", name)
        if not os.path.isfile(path):
            raise BadRecord("picture missing", name)
        if os.path.getsize(path) > MAX_BYTES:
            raise BadRecord("picture file too large", name)
        return picture(Path(path).read_bytes())

    def _from_tar(self, name: str) -> bytes:
        assert self._tar is not None
        if name not in self._tar:
            raise BadRecord("picture missing", name)
        offset, size = self._tar[name]
        if size > MAX_BYTES:
            raise BadRecord("picture file too large", name)
        with open(self.place, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _from_zip(self, name: str) -> bytes:
        assert self._zip is not None
        try:
            info = self._zip.getinfo(name)
            if info.file_size > MAX_BYTES:
                raise BadRecord("picture file too large", name)
            return self._zip.read(info)
        except KeyError:
            raise BadRecord("picture missing", name) from None
        except (*BROKEN, NotImplementedError, RuntimeError) as error:  # RuntimeError: encrypted
            raise BadRecord("picture cannot be unpacked", str(error)) from None


@lru_cache(maxsize=4)
def open_pictures(place: str) -> Pictures:
    """`Pictures`, opened once a process: the names of a tar take a while to read."""
    return Pictures(place)


def decoded(text: object) -> ImageSegment:
    """A picture from base64, plain or URL-safe, with or without `data:image/...;base64,`."""
    if isinstance(text, bytes):
        text = text.decode("ascii", errors="replace")
    if not isinstance(text, str) or not text.strip():
        raise BadRecord("no picture")
    coded = text.rpartition(",")[2] if text.startswith("data:") else text
    coded = "".join(coded.split())  # some writers break it into lines
    coded = coded.replace("-", "+").replace("_", "/")
    try:
        return picture(base64.b64decode(coded + "=" * (-len(coded) % 4), validate=True))
    except (binascii.Error, ValueError):
        raise BadRecord("picture is not base64", coded[:40]) from None


def _tar_places(path: Path) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(path, "r:") as tar:
            return {m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isreg()}
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole tar file ({error})") from None

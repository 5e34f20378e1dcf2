"""Pictures that a user gives: read with limits, checked at once, known by the hash of their bytes.

Nothing here loads torch, so that a bad path is told before a model is loaded.
"""

import hashlib
import http.client
import io
import logging
import re
import stat
import urllib.request
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.command import printable
from mllm.errors import UserError

MAX_BYTES = 64 << 20  # of an encoded picture; what it may decode to is `mllm.images.MAX_PIXELS`
URL_SECONDS = 20  # longest wait for a server's next bytes
URL = re.compile(r"https?://\S+", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """An encoded picture that was decoded once and is whole.

    Equal pictures have equal bytes. `name` is only for people: nothing is read by it again.
    """

    data: bytes = field(repr=False, compare=False)
    name: str = field(compare=False)
    width: int = field(compare=False)
    height: int = field(compare=False)
    sha256: str
    is_animated: bool = field(default=False, compare=False)

    @property
    def label(self) -> str:
        """For people: name and size, without control characters."""
        note = ", animated: its first frame" if self.is_animated else ""
        return f"{printable(self.name)} ({self.width} x {self.height}{note})"


def picture_of(data: bytes, name: str) -> Picture:
    """The picture in `data`.

    Raises:
        UserError: not a picture, broken, or too large; the line begins with `name`.
    """
    from PIL import Image

    from mllm.images import BROKEN, FORMATS, open_picture

    # What they would say stands in our one line, or does not matter.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)

    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: {len(data):,} bytes; a picture has at most {MAX_BYTES:,}")
    try:
        opened = open_picture(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            is_animated = bool(getattr(header, "is_animated", False))
    except (ValueError, *BROKEN) as error:
        hint = "; draw it as PNG first" if _is_svg(data) else ""
        raise UserError(f"{name}: {error}{hint}") from None
    digest = hashlib.sha256(data).hexdigest()
    return Picture(data, name, opened.width, opened.height, digest, is_animated)


def _is_svg(data: bytes) -> bool:
    return b"<svg" in data[:1024].lower()


def read_picture(path: str | Path) -> Picture:
    """The picture in a file.

    Raises:
        UserError: no such file, no plain file (a pipe would never end), or not a picture.
    """
    try:
        path = Path(path).expanduser()
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: not a file; a picture is read from a plain file")
        if found.st_size > MAX_BYTES:
            raise UserError(f"{path}: {found.st_size:,} bytes; a picture has at most {MAX_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (ValueError, RuntimeError) as error:  # a zero byte in the path; no such home
        raise UserError(f"{path}: {error}") from None
    return picture_of(data, str(path))


def fetch_picture(url: str) -> Picture:
    """The picture at an http or https address.

    Raises:
        UserError: no answer, too many bytes, or not a picture.
    """
    # Of handlers only these: no file://, ftp:// or data:, also after a redirect.
    opener = urllib.request.OpenerDirector()
    handlers: list[Any] = [
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mllm"})
        with opener.open(request, timeout=URL_SECONDS) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise UserError(f"{url}: {reason}") from None
    return picture_of(data, url)

"""Texts and pictures of a line that a user typed."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mllm.chat.conversation import Content, Shot
from mllm.chat.pictures import URL, Picture, fetch_picture, read_picture
from mllm.chat.text import whole
from mllm.command import printable
from mllm.errors import UserError

PUNCTUATION = "?,.;:!"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
# A quoted word, or one in which a backslash keeps a space: what terminals paste for a dropped file.
WORD = re.compile(r"""(?<!\S)(?:"[^"]+"[?,.;:!]*|'[^']+'[?,.;:!]*|(?:\\.|[^\s\\])+)(?!\S)""")
IMAGE_COMMAND = "/image"
IMAGE_USAGE = "/image needs a path: /image PATH [TEXT]"
ARROW = "=>"  # between an exemplar's question and its answer


@dataclass(frozen=True)
class LineReader:
    """Reads lines.

    Args:
        note: takes a line for the user, such as that a word only looks like a picture.
        allows_urls: pictures are fetched from http and https addresses.
    """

    note: Callable[[str], None]
    allows_urls: bool = False

    def content(self, line: str) -> Content:
        """Texts and pictures of one line, in order.

        A word is a picture if it ends like one and names a file, or at least looks like a path, or
        is an address where addresses are allowed. Punctuation at its end belongs to the text
        before it; where that makes a question, the picture comes first, as in the documents that
        the model knows.

        Raises:
            UserError: a picture cannot be opened.
        """
        content: Content = []
        end = 0
        for match in WORD.finditer(line):
            word = match[0].rstrip(PUNCTUATION)
            picture = self._picture(word)
            if picture is None:
                continue
            text, tail = line[end : match.start()].strip(), match[0].removeprefix(word)
            if text and tail.endswith("?"):
                content += [picture, text + tail]
            else:
                content += [text + tail, picture] if text else [picture]
            end = match.end()
        if text := line[end:].strip():
            content.append(text)
        return [whole(part) if isinstance(part, str) else part for part in content]

    def turn(self, line: str) -> Content:
        """The content of a line, which may be `/image PATH [TEXT]`.

        Raises:
            UserError: as of `content` and `named_picture`.
        """
        command, _, rest = line.partition(" ")
        if command != IMAGE_COMMAND:
            return self.content(line)
        picture, text = self.named_picture(rest.strip(), IMAGE_USAGE)
        return [picture, *self.content(text)]

    def _picture(self, word: str) -> Picture | None:
        """The picture that a word of a line is; None where it is text."""
        path = _unquoted(word)
        if path is None:  # an apostrophe: a word of text
            return None
        is_url = URL.fullmatch(path) is not None
        # What follows the path of an address stands behind one of these.
        name = re.split("[?#]", path)[0] if is_url else path
        looks_so = name.lower().endswith(PICTURE_SUFFIXES)
        if is_url:
            if looks_so and self.allows_urls:
                return fetch_picture(path)
            if looks_so:
                self.note(f"{printable(path)}: taken as text; --allow-urls fetches pictures")
            return None
        if not looks_so:
            return None
        if "/" not in path and not _is_file(path):
            self.note(f"{printable(path)}: no such file; taken as text")
            return None
        return read_picture(path)

    def named_picture(self, rest: str, usage: str) -> tuple[Picture, str]:
        """The picture whose path begins `rest` (it may end in anything), and the text after it.

        Raises:
            UserError: no path, with `usage`; or the picture cannot be opened.
        """
        match = WORD.match(rest)
        if match is None:
            raise UserError(usage)
        path = _unquoted(match[0])
        return self.given_picture(match[0] if path is None else path), rest[match.end() :].strip()

    def given_picture(self, path: str) -> Picture:
        """The picture at a path, or at an address where these are allowed.

        Raises:
            UserError: it cannot be opened.
        """
        if not URL.fullmatch(path):
            return read_picture(path)
        if not self.allows_urls:
            raise UserError(f"{path}: nothing is fetched from the network without --allow-urls")
        return fetch_picture(path)

    def path(self, rest: str) -> Path:
        """The file that `rest` names, quoted or not.

        Raises:
            UserError: no file can have that name.
        """
        path = _unquoted(rest.strip())
        return expanded(rest.strip() if path is None else path)

    def shot(self, rest: str, usage: str) -> Shot:
        """An exemplar: pictures and text, `=>`, its answer.

        Raises:
            UserError: one of them is missing, with `usage`; or a picture cannot be opened.
        """
        shown, arrow, answer = rest.rpartition(ARROW)
        if not (arrow and shown.strip() and answer.strip()):
            raise UserError(usage)
        shown = shown.strip()
        match = WORD.match(shown)
        path = match and _unquoted(match[0])
        if match and path and not path.lower().endswith(PICTURE_SUFFIXES) and _is_file(path):
            picture, text = self.named_picture(shown, usage)
            return Shot([picture, *self.content(text)], whole(answer.strip()))
        return Shot(self.content(shown), whole(answer.strip()))


def expanded(path: str) -> Path:
    """`path` with the home folder for `~`.

    Raises:
        UserError: no file can have that name.
    """
    try:
        if "\0" in path:
            raise UserError(f"{path}: a file's name has no zero byte")
        return Path(path).expanduser()
    except RuntimeError:  # ~nobody
        raise UserError(f"{path}: no such home folder") from None


def _unquoted(word: str) -> str | None:
    """One word as a shell would read it; None where its quotes do not close."""
    try:
        words = shlex.split(word)
    except ValueError:
        return None
    return words[0] if len(words) == 1 else None


def _is_file(path: str) -> bool:
    try:
        return Path(path).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long to be one; no such home
        return False

"""Texts and pictures of a line that a user typed."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mllm.chat.conversation import Content, Shot
from mllm.chat.pictures import URL, Picture, fetch_picture, read_picture
from mllm.command import printable
from mllm.errors import UserError

PUNCTUATION = "?,.;:!"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
# A quoted word, or one in which a backslash keeps a space: what terminals paste for a dropped file.
WORD = re.compile(r"""(?<!\S)(?:"[^"]+"[?,.;:!]*|'[^']+'[?,.;:!]*|(?:\\.|[^\s\\])+)(?!\S)""")
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

        A word is a picture if it ends like one and names a file, or at least looks like a path; an
        address is one where addresses are allowed. Punctuation at its end belongs to the text
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
        return content

    def _picture(self, word: str) -> Picture | None:
        """The picture that a word of a line is; None where it is text."""
        path = _unquoted(word)
        if path is None:  # an apostrophe: a word of text
            return None
        looks_so = path.lower().endswith(PICTURE_SUFFIXES)
        if URL.fullmatch(path):
            if self.allows_urls:
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
        """The file that `rest` names, quoted or not."""
        path = _unquoted(rest.strip())
        return Path(rest.strip() if path is None else path).expanduser()

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
            return Shot([picture, *self.content(text)], answer.strip())
        return Shot(self.content(shown), answer.strip())


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

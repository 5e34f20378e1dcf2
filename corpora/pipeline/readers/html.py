"""HTML pages: text and local pictures in reading order.

Blocks become lines, runs of white space one space; what is not content (script, style, nav, forms)
is passed over, and so are DocBook's navigation blocks, which manuals such as GIMP's carry.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from corpora.document import Document, ImageSegment, TextSegment
from corpora.pipeline.readers.base import BadRecord, Format, ReadLog
from corpora.pipeline.readers.pictures import decoded, open_pictures
from corpora.pipeline.units import Part, files_under

_NO_CONTENT = """
head script style nav noscript template iframe object button select textarea form svg canvas audio
video math
"""
_BLOCKS = """
address article aside blockquote body br caption center dd details dialog div dl dt fieldset
figcaption figure footer h1 h2 h3 h4 h5 h6 header hr html li main ol p pre section summary table
tbody td tfoot th thead tr ul
"""
SKIPPED = frozenset(_NO_CONTENT.split())
SKIPPED_CLASSES = frozenset(("navheader", "navfooter"))
BLOCKS = frozenset(_BLOCKS.split())
SPACE = re.compile(r"\s+")
MAX_FILE = 64 << 20  # bytes


class Html(Format):
    name = "html"
    summary = "folders of .html pages with their pictures (--image-dir: the folder that holds both)"
    suffixes = (".html", ".htm", ".xhtml")
    weight = 16

    def claims(self, source: Path) -> bool:
        path = next(files_under(source, self.suffixes), None)
        return path is not None and path.name.lower().endswith(self.suffixes)

    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        root = source if source.is_dir() else source.parent
        for path in files_under(source, self.suffixes):
            yield Part(str(path), path.stat().st_size, root=str(root))

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        path = Path(part.path)
        where = str(path.relative_to(part.root))
        if part.size > MAX_FILE:
            log.drop("page too large", where)
            return
        pictures = open_pictures(self.options.image_dir or part.root)

        def shown(source: str) -> ImageSegment | None:
            try:
                return self._picture(source, path, pictures)
            except BadRecord as bad:
                log.leave_out(bad.reason, where, bad.excerpt)
                return None

        try:
            segments = list(reading_order(path.read_bytes(), shown))
        except BadRecord as bad:
            log.drop(bad.reason, where, bad.excerpt)
            return
        if not segments:
            log.drop("empty page", where)
        elif not any(isinstance(segment, ImageSegment) for segment in segments):
            log.drop("no picture left", where)
        else:
            yield Document("", tuple(segments), {"file": where})

    def _picture(self, source: str, page: Path, pictures: Any) -> ImageSegment:
        if source.startswith("data:"):
            return decoded(source)
        try:
            url = urlsplit(source)
        except ValueError:
            raise BadRecord("picture's src is no address", source) from None
        if url.scheme or url.netloc:
            raise BadRecord("picture is not local", source)
        name = unquote(url.path)
        if name.lower().endswith((".svg", ".svgz")):
            raise BadRecord("picture is SVG", source)
        if not name:
            raise BadRecord("picture without src")
        if name.startswith("/"):  # from the root of the site, which is the folder of pages
            return pictures.get(name.lstrip("/"))
        return pictures.get(str(page.parent.resolve() / name))


class ImageMark:
    """Where a picture stands in a page."""

    def __init__(self, source: str) -> None:
        self.source = source


def reading_order(
    page: bytes, shown: Callable[[str], ImageSegment | None]
) -> Iterator[TextSegment | ImageSegment]:
    """Texts and pictures of a page, in order.

    Args:
        shown: gives the picture of a `src`, or None where it is left out; the texts around it are
            then one.
    """
    root = _parsed(page)
    if root is None:
        return
    pieces: list[str] = []
    for item in _walk(root):
        if isinstance(item, str):
            pieces.append(item)
            continue
        picture = shown(item.source)
        if picture is None:
            continue
        if text := _tidy(pieces):
            yield TextSegment(text)
        pieces = []
        yield picture
    if text := _tidy(pieces):
        yield TextSegment(text)


def _parsed(page: bytes) -> Any:
    """The tree of a page, or None for an empty one. BadRecord when it cannot be read to its end."""
    from lxml import etree, html

    # Without a declared charset lxml takes Latin-1, but most pages that declare none are UTF-8.
    try:
        page.decode()
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None
    parser = html.HTMLParser(
        encoding=encoding,
        no_network=True,
        remove_comments=True,
        remove_pis=True,
        huge_tree=True,  # 2,048 elements deep; else what lies below 256 is cut off without a word
    )
    try:
        root = html.document_fromstring(page, parser=parser)
    except (etree.LxmlError, ValueError):
        root = None
    if any(error.level == etree.ErrorLevels.FATAL for error in parser.error_log):
        raise BadRecord("page cannot be parsed", parser.error_log[-1].message)
    return root


def _walk(root: Any) -> Iterator[str | ImageMark]:
    """White space within blocks collapsed, "\\n" around blocks. No recursion: pages nest deeply."""
    from lxml import etree

    skipping: Any = None
    kept = 0  # <pre> elements that are open
    for event, element in etree.iterwalk(root, events=("start", "end")):
        tag = element.tag if isinstance(element.tag, str) else ""
        if event == "start":
            if skipping is not None:
                continue
            if tag in SKIPPED or not tag or SKIPPED_CLASSES & set(element.get("class", "").split()):
                skipping = element
                continue
            if tag in BLOCKS:
                yield "\n"
            kept += tag == "pre"
            if tag == "img":
                yield ImageMark((element.get("src") or "").strip())
            yield _text(element.text, kept)
        else:
            if skipping is not None and skipping is not element:
                continue
            if skipping is None:
                kept -= tag == "pre"
                if tag in BLOCKS:
                    yield "\n"
            skipping = None
            if element is not root:
                yield _text(element.tail, kept)


def _text(text: str | None, kept: int) -> str:
    return (text or "") if kept else SPACE.sub(" ", text or "")


def _tidy(pieces: list[str]) -> str:
    """Lines without outer spaces, at most one of them empty in a row."""
    lines = [line.rstrip() for line in "".join(pieces).split("\n")]
    lines = [line[1:] if line.startswith(" ") and line[1:2] != " " else line for line in lines]
    return re.sub(r"\n{2,}", "\n", "\n".join(lines)).strip()

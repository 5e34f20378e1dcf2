"""Pictures in a terminal: kitty's protocol or sixel where they are spoken, else half blocks."""

import io
import sys
from typing import Any, Literal, get_args

from rich.console import Console

from mllm.chat.pictures import Picture

Mode = Literal["auto", "kitty", "sixel", "blocks", "off"]
MODES: tuple[Mode, ...] = get_args(Mode)

MIN_COLUMNS, MAX_COLUMNS, MAX_ROWS = 4, 28, 9
MAX_SIDE = 512  # pixels that are sent to the terminal


class Thumbnails:
    """Draws pictures small.

    Args:
        mode: `auto` asks the terminal what it speaks, so make this before keys are read. Neither
            without colours (NO_COLOR, a dumb terminal, a pipe) nor without UTF-8 is anything drawn.
    """

    def __init__(self, mode: Mode, console: Console) -> None:
        self._console = console
        self._kind: Any = None
        is_utf8 = "utf" in (console.encoding or "").lower()
        if mode == "off" or (mode == "auto" and (not _has_colours(console) or not is_utf8)):
            return
        self._kind = _kind(mode)

    def draw(self, picture: Picture) -> None:
        """Prints the picture, at most MAX_COLUMNS wide."""
        if self._kind is None:
            return
        from PIL import Image

        from mllm.images import open_picture

        image = open_picture(picture.data)
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        columns = min(MAX_COLUMNS, self._console.width - 1)
        # A cell is about twice as high as wide.
        columns = min(columns, max(1, round(2 * MAX_ROWS * image.width / image.height)))
        if columns < MIN_COLUMNS:
            return
        try:
            self._console.print(self._kind(image, width=columns, height="auto"))
        except Exception:  # of a terminal that says it has no size; never worth a conversation
            self._kind = None


def _has_colours(console: Console) -> bool:
    return console.is_terminal and not console.no_color and not console.is_dumb_terminal


def _kind(mode: Mode) -> Any:
    if mode == "auto":
        # Importing asks the terminal, and warns on stderr where it does not answer.
        stderr, sys.stderr = sys.stderr, io.StringIO()
        try:
            from textual_image.renderable import Image
        finally:
            sys.stderr = stderr
        return Image
    from textual_image.renderable import HalfcellImage, SixelImage, TGPImage

    return {"kitty": TGPImage, "sixel": SixelImage, "blocks": HalfcellImage}[mode]

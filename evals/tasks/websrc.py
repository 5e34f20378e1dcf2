"""WebSRC: questions about web pages, given a screenshot and the page's text, or the screenshot."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from evals.api import Exemplar, ImageFile, Query
from evals.layouts.images import Part
from evals.layouts.websrc import WebRecord, load, web_text
from evals.options import TaskOptions
from evals.tasks.downloaded import Downloaded
from evals.tasks.page_qa import PageTask
from mllm.errors import UserError


class WebSrc(PageTask, Downloaded[WebRecord]):
    """Exact match and token F1. A row says how large the screenshot was: the model sees a whole
    page squashed into its own size."""

    name = "websrc"
    split = "dev"
    metric = "EM"

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.decode_by(options)
        self.read(folder, options)

    def load(self, part: Part) -> list[WebRecord]:
        return load(self.folder_path, part)

    def key(self, record: WebRecord) -> str:
        return record.id

    def query(self, query_id: str) -> Query:
        record = self.questions.by_id[query_id]
        image, text = ImageFile(record.image_path), self._text(record)
        query = self.asked(record.id, image, text, record.question, [record.answer])
        query.meta["screenshot"] = _size(record.image_path)
        return query

    def show(self, record: WebRecord) -> Exemplar:
        image, text = ImageFile(record.image_path), self._text(record)
        return self.shown(record.id, image, text, record.question, record.answer)

    def label(self, record: WebRecord) -> str:
        return record.answer

    def _text(self, record: WebRecord) -> str:
        return _web_text(record.html_path) if self.has_page_text else ""

    def row(self, query: Query, responses: Sequence[Any]) -> dict[str, Any]:
        return super().row(query, responses) | {"screenshot": query.meta["screenshot"]}


class WebSrcNoText(WebSrc):
    """The screenshot alone."""

    name = "websrc_no_text"
    has_page_text = False


_web_text = lru_cache(maxsize=1024)(web_text)  # a page has a dozen questions


@lru_cache(maxsize=1024)
def _size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's first bytes."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError as error:  # what Pillow raises is one
        raise UserError(
            f"{path}: does not open as a picture ({error}); download it again"
        ) from None

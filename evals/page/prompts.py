"""One query on the page: its shots, what was asked, what the model made of it, what was right."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from corpora.document import ImageSegment, Segment, TextSegment
from evals.api import Prompt, Task, VariantRequest
from evals.rows import Row
from mllm.errors import BadSample, UserError
from mllm.report.markup import Child, Markup, h, number
from mllm.report.pictures import data_url
from mllm.report.samples import is_right, ranked, right_or_wrong, without_prompt
from mllm.report.verdict import Cell, decimals

SHOT_SIDE, QUERY_SIDE = 80, 224  # pixels a side at most; a page of text is read at the larger
MAX_SHOT_TEXT, MAX_QUERY_TEXT = 240, 1500  # characters
SEPARATOR_SIGNS = {"eos": "</s>", "newline": "↵", "blank_line": "↵↵", "none": None}


@dataclass
class Album:
    """Pictures of a part of the page, until its share of the page's bytes is used up."""

    budget: int
    used: int = field(default=0, init=False)

    def picture(self, data: ImageSegment, side: int) -> Markup:
        if self.used >= self.budget:
            return h("span", "picture left out: the page is full", class_="no-picture")
        try:
            url = data_url(data.data, side, "JPEG")
        except (BadSample, UserError, ValueError) as error:
            return h("span", str(error), class_="no-picture")
        self.used += len(url)
        return h("img", src=url, alt="picture")


def example(
    cell: Cell, row: Row, prompt: Prompt | None, task: Task | None, album: Album, worst_by: str = ""
) -> Markup:
    """A card: shots in a row of tiles, then the query with answer, gold and candidates.

    Args:
        prompt: None where it could not be made again: the row stands alone.
        worst_by: what makes it one of the worst errors.
    """
    shots = None
    if prompt is not None and prompt.shots:
        shots = h(
            "div", [_shot(prompt, i, album) for i in range(len(prompt.shots))], class_="shots"
        )
    elif row["shots"]:
        shots = h("p", "Shots: ", ", ".join(map(str, row["shots"])), class_="note")
    asked: Child = h("p", "its prompt could not be made again from the data", class_="note")
    if prompt is not None:
        asked = _inline(prompt.query.segments, album, QUERY_SIDE, MAX_QUERY_TEXT)
    return h(
        "article",
        h("small", str(row["id"]), f" · {worst_by}" if worst_by else None),
        shots,
        h("div", h("div", asked, class_="asked"), _outcome(cell, row), class_="query"),
        _endings(prompt, row, task, album),
        class_="example",
    )


def _shot(prompt: Prompt, place: int, album: Album) -> Markup:
    shot = prompt.shots[place]
    return h(
        "div",
        _inline(shot.question, album, SHOT_SIDE, MAX_SHOT_TEXT),
        h("b", _clipped(shot.answer, MAX_SHOT_TEXT)),
        h("span", SEPARATOR_SIGNS[prompt.separator], class_="separator"),
        class_="shot",
    )


def _inline(segments: Sequence[Segment], album: Album, side: int, max_text: int) -> list[Markup]:
    """Pictures and texts in their order."""
    parts = []
    for segment in segments:
        match segment:
            case ImageSegment():
                parts.append(album.picture(segment, side))
            case TextSegment(text):
                parts.append(h("span", _clipped(text, max_text), class_="text"))
    return parts


def _clipped(text: str, limit: int) -> str:
    """A text's beginning and end, with what is left out between them counted."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"


def _outcome(cell: Cell, row: Row) -> Markup:
    """What the model answered, and what was right."""
    settings = cell["settings"]
    is_share = cell["unit"] == "%" or cell["suite"] == "caption"
    mark = right_or_wrong(is_right(cell["suite"], row)) if is_share else None
    said = without_prompt(settings, row)
    if row.get("candidates"):
        answer: Child = [h("p", mark), ranked(cell, row)]
    elif row.get("answer") is None:
        answer = None  # a text that was only scored
    else:
        answer = h("p", h("q", _clipped(said, MAX_QUERY_TEXT) or "(nothing)"), " ", mark)
    golds = row.get("references") or ([row["gold"]] if row.get("gold") else [])
    if row.get("candidates"):
        golds = []  # marked among them
    rationale = row.get("rationale")
    score = row.get("score")
    is_plain = mark is not None and score in (0.0, 1.0)
    return h(
        "div",
        h("p", "First it said: ", h("q", _clipped(str(rationale), MAX_QUERY_TEXT)))
        if rationale
        else None,
        answer,
        h("p", "Right: ", _clipped(" / ".join(map(str, golds)), MAX_QUERY_TEXT), class_="note")
        if golds
        else None,
        h("p", f"Score {number(score, max(decimals(cell), 2))}", class_="note")
        if score is not None and not is_plain
        else None,
        class_="outcome",
    )


def _endings(prompt: Prompt | None, row: Row, task: Task | None, album: Album) -> Markup | None:
    """The pictures that a query's endings bring, the right one marked."""
    request = task.request(prompt) if task is not None and prompt is not None else None
    if not isinstance(request, VariantRequest):
        return None
    pictured = [any(isinstance(part, ImageSegment) for part in end) for end in request.endings]
    if not any(pictured):
        return None
    tiles = [
        h(
            "div",
            _inline(ending, album, SHOT_SIDE, MAX_SHOT_TEXT),
            h("b", f"{place + 1}", " ✓" if place == row.get("gold_index") else None),
            class_="shot",
        )
        for place, ending in enumerate(request.endings)
    ]
    return h("div", tiles, class_="shots")

"""WebSRC: questions about web pages, given as a screenshot and as HTML.

    DIR/dataset_split_release.json             {"train": ["au02", ...], "dev": [...], "test": [...]}
    DIR/auto/01/dataset.csv                    question,id,element_id,answer_start,answer
    DIR/auto/01/processed_data/0100001.{png,html}

A site is named by the first two letters of its domain and two digits; the page of a question is
`id[2:9]`.
"""

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from evals.layouts.files import Record, find_file, named, read_csv, read_json, read_text
from evals.layouts.images import Part
from mllm.errors import UserError

SPLITS: dict[Part, str] = {"evaluation": "dev", "training": "train", "test": "test"}
COLUMNS = ("question", "id", "element_id", "answer_start", "answer")
ID_LENGTH = 14
HIDDEN = frozenset({"script", "style", "noscript", "template", "head", "svg"})


@dataclass(frozen=True, slots=True)
class WebRecord:
    """A question about a page.

    Args:
        id: 14 characters: domain, site, page, question.
        image_path: The screenshot, wide as a page is.
        html_path: What `web_text` reads.
        element_id: The tag that holds the answer; -1 of yes/no answers.
    """

    id: str
    image_path: Path
    html_path: Path
    question: str
    answer: str
    element_id: int


def load(folder: Path, part: Part) -> list[WebRecord]:
    """The questions of a split's sites, in the order of the sites' names."""
    path = find_file(folder, ["dataset_split_release.json"], "WebSRC")
    sites = _sites(path, SPLITS[part])
    found = {
        f"{csv_path.parent.parent.name[:2]}{csv_path.parent.name:0>2}": csv_path
        for csv_path in sorted(path.parent.glob("*/*/dataset.csv"))
    }
    lacking = [site for site in sites if site not in found]
    if lacking:
        raise UserError(
            f"{path}: {len(lacking)} of {len(sites)} sites of {SPLITS[part]!r} have no "
            f"dataset.csv beside it ({named(lacking)}); unpack the whole release"
        )
    return [record for site in sites for record in read_websrc(found[site])]


def _sites(path: Path, split: str) -> list[str]:
    value = read_json(path)
    sites = value.get(split) if type(value) is dict else None
    if type(sites) is not list or not all(type(site) is str for site in sites) or not sites:
        raise UserError(f'{path}: "{split}" must be a list of sites, such as ["au01"]')
    return sorted(set(sites))


def read_websrc(path: Path) -> list[WebRecord]:
    """The questions of one site's `dataset.csv`."""
    records: dict[str, WebRecord] = {}
    for row in read_csv(path, COLUMNS):
        record = _record(row)
        if record.id in records:
            raise row.error(f'"id" {record.id} was already there; remove one')
        records[record.id] = record
    if not records:
        raise UserError(f"{path}: no question in it; download it again")
    return list(records.values())


def _record(row: Record) -> WebRecord:
    name = row.text("id").strip()
    if len(name) != ID_LENGTH:
        raise row.error(f'"id" is {name!r}, must be {ID_LENGTH} characters, such as sp160000100001')
    try:
        element_id = int(row.text("element_id"))
    except ValueError:
        raise row.error(f'"element_id" is {row.text("element_id")!r}, must be an integer') from None
    pages = row.path.parent / "processed_data"
    page = name[2:9]
    return WebRecord(
        id=name,
        image_path=pages / f"{page}.png",
        html_path=pages / f"{page}.html",
        question=row.text("question").strip(),
        answer=row.text("answer"),
        element_id=element_id,
    )


class _VisibleText(HTMLParser):
    """Gathers the text between tags, but not of scripts, styles and the head."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "body":
            self.hidden.clear()  # an open <head> ends here, as in a browser
        elif tag in HIDDEN:
            self.hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            while self.hidden.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)


def web_text(html_path: Path) -> str:
    """The visible text of a page, white space collapsed (the paper's WebText)."""
    parser = _VisibleText()
    parser.feed(read_text(html_path))
    parser.close()
    return " ".join(" ".join(parser.pieces).split())

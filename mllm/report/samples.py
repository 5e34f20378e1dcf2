"""Pictures drawn by seed whatever the scores, each with what the model said about it.

The draw is an order of sample keys by hash, a function of (seed, key) alone, so neither scores nor
the model can move a picture onto the page or off it.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.scoring import NORMS, holds_name, plain
from evals.tasks.rows import candidate_scores
from mllm.errors import BadSample, UserError
from mllm.report.inputs import read_json_lines
from mllm.report.markup import Child, Markup, h, join
from mllm.report.pictures import data_url
from mllm.report.verdict import SPLITS, SUITES, Cell

MAX_SIDE = 160  # pixels of a picture on the page
NUM_FAILURES = 4  # shown after the draw, the next in the same order

Row = dict[str, Any]  # one line of samples.jsonl


@dataclass
class Gallery:
    """The zero-shot answers about one evaluation corpus."""

    corpus: str
    split: str
    cells: dict[str, Cell] = field(default_factory=dict)  # by suite
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)  # by suite, by sample key


@dataclass(frozen=True)
class Picture:
    """What the corpus knows of a sample."""

    uri: str | None  # data:image/png;base64,...
    problem: str | None
    meta: dict[str, Any]


def in_drawn_order(keys: Iterable[str], seed: int) -> list[str]:
    """The keys by the hash of (seed, key)."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def read_galleries(eval_dir: Path, cells: list[Cell]) -> tuple[list[Gallery], list[str]]:
    """Zero-shot rows grouped by evaluation corpus, and the samples files that are not there.

    Development halves are left out where anything else is there.
    """
    galleries: dict[str, Gallery] = {}
    missing = []
    for cell in cells:
        if cell["num_shots"] != 0 or not cell.get("per_seed"):
            continue
        path = eval_dir / str(cell["per_seed"][0].get("samples", ""))
        rows = read_json_lines(path) if path.is_file() else []
        if not rows:
            missing.append(str(path))
        for row in rows:
            corpus = row.get("corpus")
            if row.get("n_images") == 0:
                continue
            if not isinstance(corpus, str) or "id" not in row:
                raise UserError(f"{path}: a row lacks `id` or `corpus`; run `mllm eval` again")
            gallery = galleries.setdefault(corpus, Gallery(corpus, str(cell.get("split") or "")))
            gallery.cells[cell["suite"]] = cell
            gallery.rows.setdefault(cell["suite"], {})[str(row["id"])] = row
    reported = [gallery for gallery in galleries.values() if gallery.split != "development"]
    return reported or list(galleries.values()), missing


def read_pictures(corpus_dir: Path, keys: list[str]) -> dict[str, Picture]:
    """The pictures with these keys as the model's decoder sees them, shrunk for the page."""
    from corpora.reader import Corpus

    corpus = Corpus(corpus_dir)
    index = {key: i for i, key in enumerate(corpus.keys)}
    return {key: _read_picture(corpus, index[key]) for key in keys if key in index}


def _read_picture(corpus: Any, i: int) -> Picture:
    try:
        document = corpus.document(i)
        if not document.images:
            return Picture(None, "the sample has no picture", document.meta)
        return Picture(data_url(document.images[0], MAX_SIDE, "PNG"), None, document.meta)
    except (BadSample, ValueError) as error:
        return Picture(None, str(error), {})


def probabilities(row: Row, norm: str) -> list[tuple[str, float]]:
    """(candidate, share) by descending share: softmax of the candidates' scores under the norm."""
    scores = [NORMS[norm](candidate) for candidate in candidate_scores(row)]
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    shares = [weight / sum(weights) for weight in weights]
    pairs = [(str(c["text"]), s) for c, s in zip(row["candidates"], shares, strict=True)]
    return sorted(pairs, key=lambda pair: -pair[1])


def is_right(suite: str, row: Row) -> bool | None:
    """Whether the answer is right; a caption is when it holds the picture's name (its gold). None
    where an answer alone has no score."""
    if suite == "caption":
        return holds_name(said(row), str(row["gold"]))
    return None if row.get("score") is None else bool(row["score"] >= 0.5)


def said(row: Row) -> str:
    answer = row.get("answer")
    return " ".join(str(row.get("raw", "") if answer is None else answer).split())


def asked_by_all(gallery: Gallery) -> set[str]:
    """The keys that every suite has answered (suites differ in --limit), so that no drawn picture
    lacks one of them; all keys where the suites share none.
    """
    answered = [set(rows) for rows in gallery.rows.values()]
    return set.intersection(*answered) or set.union(*answered)


def counts(gallery: Gallery, suite: str, keys: list[str]) -> str:
    """`9 right, 3 wrong` over the drawn pictures that this suite asked about."""
    rows = gallery.rows[suite]
    answers = [is_right(suite, rows[key]) for key in keys if key in rows]
    return f"{answers.count(True)} right, {answers.count(False)} wrong"


def gallery_section(
    gallery: Gallery, corpora_dir: Path | None, seed: int, num_pictures: int
) -> Markup:
    """One evaluation corpus: the draw with its counts, then the next failures in the same order."""
    keys = in_drawn_order(asked_by_all(gallery), seed)
    drawn, later = keys[:num_pictures], keys[num_pictures:]
    main = "naming" if "naming" in gallery.rows else next(iter(gallery.rows))
    rows = gallery.rows[main]
    failures = [key for key in later if key in rows and is_right(main, rows[key]) is False]
    failures = failures[:NUM_FAILURES]
    pictures: dict[str, Picture] = {}
    problem = "no --corpus given, so answers stand without their pictures."
    if corpora_dir is not None:
        corpus_dir = corpora_dir / "eval" / gallery.corpus
        problem = f"{corpus_dir} is missing, so answers stand without their pictures."
        if corpus_dir.is_dir():
            pictures, problem = read_pictures(corpus_dir, drawn + failures), ""
    asked = ", ".join(SUITES.get(suite, (suite,))[0] for suite in gallery.rows)
    tallies = "; ".join(
        f"{SUITES.get(suite, (suite,))[0].lower()}: {counts(gallery, suite, drawn)}"
        for suite in gallery.rows
    )
    return join(
        [
            h("h3", asked, ": ", SPLITS.get(gallery.split, gallery.split or gallery.corpus)),
            h(
                "p",
                f"The first {len(drawn)} of {len(keys):,} in the order drawn with seed {seed}; ",
                h("strong", tallies),
                ".",
            ),
            h("p", problem, class_="note") if problem else None,
            h("div", [card(gallery, key, pictures.get(key)) for key in drawn], class_="cards"),
            [
                h("p", f"Going on in the same order, the next {len(failures)} failures:"),
                h(
                    "div",
                    [card(gallery, key, pictures.get(key)) for key in failures],
                    class_="cards",
                ),
            ]
            if failures
            else None,
        ]
    )


def card(gallery: Gallery, key: str, picture: Picture | None) -> Markup:
    image: Child
    if picture and picture.uri:
        name = str(picture.meta.get("name", "the picture asked about"))
        image = h("img", src=picture.uri, alt=name, loading="lazy")
    else:
        image = h("div", (picture and picture.problem) or "no picture", class_="no-picture")
    said_of_it = [
        answer(suite, gallery.cells[suite], rows[key])
        for suite, rows in gallery.rows.items()
        if key in rows
    ]
    return h("article", h("div", image, class_="shown"), h("div", said_of_it), class_="card")


def answer(suite: str, cell: Cell, row: Row) -> Markup:
    """What one suite got for this picture: a caption, ranked names, or a question's answer."""
    mark = right_or_wrong(is_right(suite, row))
    settings = cell.get("settings") or {}
    if row.get("candidates"):
        return h("div", h("p", "Which name? ", mark), ranked(cell, row))
    if suite == "caption":
        references = row.get("references") or [row["gold"]]
        return h(
            "div",
            h(
                "p",
                h("span", caption_prompt(settings) + " ", class_="prompt"),
                h("q", without_prompt(settings, row) or "(nothing)"),
                " ",
                mark,
            ),
            h("p", f"Reference: {references[0]}", class_="note"),
        )
    question = row.get("question")
    is_wrong = is_right(suite, row) is not True
    return h(
        "div",
        h("p", str(question), class_="prompt") if question else None,
        h("p", h("q", said(row) or "(nothing)"), " ", mark),
        h("p", f"Right answer: {row.get('gold')}", class_="note") if is_wrong else None,
    )


def right_or_wrong(right: bool | None) -> Markup | None:
    if right is None:
        return None
    word, kind = ("right", "above") if right else ("wrong", "below")
    return h("span", word, class_=f"badge {kind}")


def ranked(cell: Cell, row: Row) -> Markup:
    """A bar a candidate, by the cell's norm; the right one is marked."""
    norm = str((cell.get("settings") or {}).get("norm", "token"))
    texts = [str(candidate["text"]).strip() for candidate in row["candidates"]]
    if len(set(texts)) < len(texts):  # what differs stands before the text
        texts = [f"{place}: {text}" for place, text in enumerate(texts, 1)]
    named = [c | {"text": text} for c, text in zip(row["candidates"], texts, strict=True)]
    gold = texts[row["gold_index"]] if "gold_index" in row else str(row.get("gold", ""))
    bars = [
        candidate_bar(text, share, is_gold=plain(text) == plain(gold))
        for text, share in probabilities(row | {"candidates": named}, norm)
    ]
    return h("ol", bars, class_="names")


def caption_prompt(settings: dict[str, Any]) -> str:
    return str(settings.get("prompt") or "An image of")


def without_prompt(settings: dict[str, Any], row: Row) -> str:
    """What was said, without the words of the prompt where a caption's row has them."""
    return said(row).removeprefix(caption_prompt(settings)).strip()


def candidate_bar(text: str, share: float, is_gold: bool) -> Markup:
    return h(
        "li",
        h("i", style=f"width:{100 * share:.1f}%"),
        h("span", text.strip(), " ✓" if is_gold else None),
        h("b", f"{100 * share:.0f} %"),
        class_="gold" if is_gold else None,
    )


def picture_section(
    eval_dir: Path, cells: list[Cell], corpora_dir: Path | None, seed: int, num_pictures: int
) -> Markup:
    galleries, missing = read_galleries(eval_dir, cells)
    return join(
        [
            h(
                "p",
                "Not chosen by hand: the order is the hash of (seed, key), whatever the scores. "
                "Bars are the share each candidate gets (softmax of the score that ranks it); ✓ is "
                "the right name. A caption counts as right when it contains the picture's name "
                "word for word.",
            ),
            [h("p", f"Missing: {path}", class_="note") for path in missing],
            [gallery_section(gallery, corpora_dir, seed, num_pictures) for gallery in galleries],
            None if galleries else h("p", "No answers about pictures were found.", class_="note"),
        ]
    )

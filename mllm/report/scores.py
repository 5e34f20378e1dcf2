"""Each score beside its controls, and what they say together."""

import math
from dataclasses import dataclass
from typing import Any

from mllm.report.markup import Markup, h, join, number, table

Cell = dict[str, Any]  # one entry of results.json's `cells`

# suite: (title, what is asked of the model)
SUITES = {
    "naming": (
        "Naming a picture",
        "The model sees a drawing and scores five names; the likeliest is its answer. The four "
        "wrong names come from the same Unicode group and are the same for every method.",
    ),
    "caption": (
        "Describing a picture",
        "The model goes on after “An image of”; the text is compared with reference captions.",
    ),
    "easy_vqa": (
        "Answering a question",
        "A question about a coloured shape (“what color is the circle?”), answered freely; the "
        "answer must match exactly.",
    ),
    "text_loss": (
        "Predicting text",
        "How surprised the model is by held-out text, in nats per token; lower is better.",
    ),
}
SPLITS = {
    "final": "unseen artwork, final half: never used for tuning",
    "development": "unseen artwork, development half: used for tuning",
    "new_concepts": "concepts that no training picture, caption or text picture showed",
    "test": "official test split",
}
BASELINES = {
    "pixel neighbour": "The pixel neighbour takes the answer from the training picture that is "
    "nearest pixel by pixel: what copying would reach.",
    "question only": "“Question only” gives the commonest training answer to the same question.",
    "unigram": "The unigram model knows how often each token occurs and nothing else.",
}
CHANCE = "chance"
SPLIT_ORDER = ("final", "test", "validation", "new_concepts", "development")


@dataclass(frozen=True)
class Verdict:
    word: str  # above | level | below | unseen (the picture did not matter) | none
    text: str


def is_lower_better(cell: Cell) -> bool:
    return cell.get("is_higher_better", True) is False


def title(cell: Cell) -> str:
    return SUITES.get(cell["suite"], (str(cell["suite"]), ""))[0]


def strongest_rival(cell: Cell) -> tuple[str, float] | None:
    """The best of chance, majority answer and baselines: what a score has to beat."""
    rivals = {
        CHANCE: cell.get("chance"),
        "the commonest answer": cell.get("majority"),
        **cell.get("baselines", {}),
    }
    known = [(value, name) for name, value in rivals.items() if value is not None]
    if not known:
        return None
    # Ties go to the last one named, which is the baseline that takes most work.
    sign = -1 if is_lower_better(cell) else 1
    value, name = max(reversed(known), key=lambda item: sign * item[0])
    return name, value


BADGES = {"above": "better", "level": "level", "below": "worse", "unseen": "not seeing"}
RELATIONS = {"better than": "above", "level with": "level", "worse than": "below"}


def relation(cell: Cell, name: str, value: float) -> str:
    """`better than`, `level with` or `worse than` a rival; two standard errors make a difference.

    The evaluation's own verdict, paired by query, stands where it made one.
    """
    for made in cell.get("verdicts", []):
        if made["baseline"] == name and made["relation"] in RELATIONS:
            return str(made["relation"])
    margin = (cell["score"] - value) * (-1 if is_lower_better(cell) else 1)
    if abs(margin) <= 2 * (cell.get("se") or 0.0):
        return "level with"
    return "better than" if margin > 0 else "worse than"


def verdict(cell: Cell) -> Verdict:
    """In words: against the strongest rival, and whether the picture mattered."""
    score = cell["score"]
    if score is None:
        return Verdict("none", "not computed")
    sign = -1 if is_lower_better(cell) else 1
    word, parts = "none", []
    rival = strongest_rival(cell)
    if rival is not None:
        name, value = rival
        against = relation(cell, name, value)
        word = RELATIONS[against]
        parts.append(f"{against} {name} ({number(value, decimals(cell))})")
        chance = cell.get("chance")
        if chance is not None and name != CHANCE and word != "above":
            over = relation(cell, CHANCE, chance)
            parts.append(f"{over} {CHANCE} ({number(chance, decimals(cell))})")
    blind = cell.get("blind") or {}
    if blind.get("score") is not None:
        drop = sign * (score - blind["score"])
        if drop > 2 * math.hypot(cell.get("se") or 0.0, blind.get("se") or 0.0):
            parts.append(f"{number(blind['score'], decimals(cell))} when shown the wrong picture")
        else:
            word = "unseen"
            parts.append("no better than when shown the wrong picture")
        if blind_is_off_chance(cell):
            parts.append("the blind control is above chance: the prompt gives something away")
    text = "; ".join(parts)
    return Verdict(word, (text[:1].upper() + text[1:]) if text else "nothing to compare with")


def blind_is_off_chance(cell: Cell) -> bool:
    """More than three standard errors above what can be had without any picture."""
    blind = cell.get("blind")
    sightless = [
        value
        for value in (
            cell.get("chance"),
            cell.get("majority"),
            cell.get("baselines", {}).get("question only"),
        )
        if value is not None
    ]
    if not blind or cell.get("unit") != "%" or not sightless or not blind.get("se"):
        return False
    return bool(blind["score"] - max(sightless) > 3 * blind["se"])


def in_reading_order(cells: list[Cell]) -> list[Cell]:
    """Tasks as they came; within one, the figures that count first, then by number of shots."""
    suites = list(dict.fromkeys(cell["suite"] for cell in cells))

    def place(cell: Cell) -> tuple[int, int, float]:
        split = str(cell.get("split") or "")
        rank = SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)
        return suites.index(cell["suite"]), rank, cell["num_shots"]

    return sorted(cells, key=place)


def decimals(cell: Cell) -> int:
    return 2 if is_lower_better(cell) else 1


def with_unit(cell: Cell, value: float | None) -> str:
    if value is None:
        return "–"
    unit = str(cell.get("unit") or "")
    return f"{number(value, decimals(cell))} {unit}".strip()


def headline_cell(cells: list[Cell]) -> Cell | None:
    """The score to read first: naming on the final half, else any zero-shot naming."""
    naming = [c for c in cells if c["suite"] == "naming" and c["num_shots"] == 0]
    final = [c for c in naming if c.get("split") == "final"]
    return next(iter(final or naming), None)


def headline(cells: list[Cell]) -> Markup | None:
    """The main result as a sentence and three figures, or None without a naming score."""
    cell = headline_cell(cells)
    if cell is None or cell["score"] is None:
        return None
    seen = {"final": "in an artist's style it never trained on"}.get(str(cell.get("split")), "")
    blind = cell.get("blind")
    figures = [("right name out of five", cell["score"], "main")]
    figures += [(name, value, "") for name, value in cell.get("baselines", {}).items()]
    if blind and blind["score"] is not None:
        figures.append(("shown the wrong picture", blind["score"], ""))
    if cell.get("chance") is not None:
        figures.append(("chance", cell["chance"], ""))
    result = verdict(cell)
    return h(
        "div",
        h(
            "p",
            f"Shown a drawing {seen}".rstrip() + ", the model picks its name out of five ",
            h("strong", with_unit(cell, cell["score"])),
            f" of the time (± {number(cell.get('se'))}, {cell['n']:,} pictures).",
            class_="lead",
        ),
        h("p", badge(result), " ", result.text + "."),
        h("div", [figure(name, value, kind) for name, value, kind in figures], class_="figures"),
    )


def figure(name: str, value: float, kind: str) -> Markup:
    width = min(max(value, 0.0), 100.0)
    return h(
        "div",
        h("span", name, class_="name"),
        h("span", h("i", style=f"width:{width:.1f}%"), class_="bar"),
        h("span", f"{number(value)} %", class_="value"),
        class_=f"figure {kind}".strip(),
    )


def badge(result: Verdict) -> Markup | None:
    if result.word == "none":
        return None
    return h("span", BADGES[result.word], class_=f"badge {result.word}")


def strip(cell: Cell) -> Markup | None:
    """Score, error, chance, blind control and baselines on one line from 0 to 100 %."""
    if cell.get("unit") != "%" or cell["score"] is None:
        return None
    error = cell.get("se") or 0.0
    low, high = max(cell["score"] - 2 * error, 0.0), min(cell["score"] + 2 * error, 100.0)
    ticks = [("chance", cell.get("chance")), ("majority", cell.get("majority"))]
    ticks += [("rival", value) for value in cell.get("baselines", {}).values()]
    ticks += [("blind", (cell.get("blind") or {}).get("score"))]
    marks = [
        h("i", class_=kind, style=f"left:{min(max(value, 0), 100):.1f}%")
        for kind, value in ticks
        if value is not None
    ]
    return h(
        "span",
        h("i", class_="range", style=f"left:{low:.1f}%;width:{high - low:.1f}%"),
        marks,
        h("i", class_="dot", style=f"left:{min(max(cell['score'], 0), 100):.1f}%"),
        class_="strip",
    )


def seeds_line(cell: Cell) -> str | None:
    scores = [seed["score"] for seed in cell.get("per_seed", []) if seed.get("score") is not None]
    if len(scores) < 2:
        return None
    return "by seed: " + ", ".join(number(score, decimals(cell)) for score in scores)


def score_rows(cells: list[Cell]) -> list[list[Any]]:
    rows = []
    for cell in in_reading_order(cells):
        result = verdict(cell)
        rivals = [
            h("div", h("span", name), h("span", number(value, decimals(cell))), class_="rival-line")
            for name, value in {
                "chance": cell.get("chance"),
                "commonest answer": cell.get("majority"),
                **cell.get("baselines", {}),
            }.items()
            if value is not None
        ]
        blind = cell.get("blind")
        split = str(cell.get("split") or "")
        task = [
            h("strong", title(cell)),
            h("small", SPLITS.get(split, split)) if split else None,
        ]
        score = [
            h("strong", with_unit(cell, cell["score"])),
            h("small", f"± {number(cell.get('se'), decimals(cell))}, n = {cell['n']:,}"),
            h("small", seeds_line(cell)) if seeds_line(cell) else None,
            strip(cell),
        ]
        metric = str(cell.get("metric", "")).replace("_", " ")
        rows.append(
            [
                task,
                [str(cell["num_shots"]), h("small", metric)],
                score,
                rivals or "–",
                with_unit(cell, blind["score"]) if blind else "–",
                [badge(result), " ", result.text],
            ]
        )
    return rows


def score_section(cells: list[Cell]) -> Markup:
    """The table, how to read it, and what each task asks."""
    used = {name for cell in cells for name in cell.get("baselines", {})}
    columns = ["Task", "Shots", "Score", "Beside it", "Wrong picture", "Verdict"]
    asked = [
        [h("dt", SUITES[suite][0]), h("dd", SUITES[suite][1])]
        for suite in dict.fromkeys(cell["suite"] for cell in cells)
        if suite in SUITES
    ]
    key = [
        h("span", h("i", class_=f"key {kind}"), name)
        for kind, name in (
            ("dot", "score, with ± 2 standard errors"),
            ("rival", "baseline"),
            ("chance", "chance"),
            ("majority", "commonest answer"),
            ("blind", "wrong picture"),
        )
    ]
    return join(
        [
            h("dl", asked) if asked else None,
            table(columns, score_rows(cells)),
            h("p", key, class_="legend"),
            h(
                "p",
                "“Shots” are worked examples shown before the question. “Wrong picture” is the "
                "blind control: the same questions, each with another query's picture; a score "
                "that does not fall there was not earned by seeing. The verdict compares with the "
                "strongest number beside the score and calls a difference only beyond two standard "
                "errors (the ± figures are one). ",
                [f"{text} " for name, text in BASELINES.items() if name in used],
                class_="note",
            ),
            h(
                "p",
                "cider_d_simple is CIDEr-D over a plain tokenizer: not the published CIDEr.",
                class_="note",
            )
            if any("simple" in str(cell.get("metric")) for cell in cells)
            else None,
        ]
    )

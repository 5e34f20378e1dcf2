"""Scores on the page: the headline, and the table of each score beside its controls."""

from typing import Any

from mllm.report.markup import Markup, h, join, number, table
from mllm.report.verdict import (
    SPLITS,
    SUITES,
    Cell,
    Verdict,
    decimals,
    headline_cell,
    in_reading_order,
    shots_label,
    title,
    verdict,
)

BASELINES = {
    "pixel neighbour": "The pixel neighbour takes the answer from the training picture that is "
    "nearest pixel by pixel: what copying would reach.",
    "question only": "“Question only” gives the commonest training answer to the same question.",
    "unigram": "The unigram model knows how often each token occurs and nothing else.",
}
CONTROLS = {
    "blind": "wrong picture",
    "no_picture": "no picture",
    "permuted": "other answers in shots",
}
BADGES = {"above": "better", "level": "level", "below": "worse", "unseen": "not seeing"}


def with_unit(cell: Cell, value: float | None) -> str:
    if value is None:
        return "–"
    unit = str(cell.get("unit") or "")
    return f"{number(value, decimals(cell))} {unit}".strip()


def headline(cells: list[Cell]) -> Markup | None:
    """The main result as a sentence and three figures, or None without a naming score."""
    cell = headline_cell(cells)
    if cell is None or cell["score"] is None:
        return None
    figures = [
        ("right name out of five", cell["score"], "main"),
        *((name, value, "") for name, value in cell.get("baselines", {}).items()),
        ("shown the wrong picture", (cell.get("blind") or {}).get("score"), ""),
        ("chance", cell.get("chance"), ""),
    ]
    known = [figure(name, value, kind) for name, value, kind in figures if value is not None]
    result = verdict(cell)
    return h(
        "div",
        h(
            "p",
            "Shown a drawing, the model picks its name out of five ",
            h("strong", with_unit(cell, cell["score"])),
            f" of the time (± {number(cell.get('se'))}, {cell['n']:,} pictures",
            f"; {SPLITS[cell['split']]})." if cell.get("split") in SPLITS else ").",
            class_="lead",
        ),
        h("p", badge(result), " ", result.text + "."),
        h("div", known, class_="figures"),
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
        split = str(cell.get("split") or "")
        task = [
            h("strong", title(cell)),
            h("small", SPLITS.get(split, split)) if split else None,
        ]
        score = [
            h("strong", with_unit(cell, cell["score"])),
            h(
                "small",
                f"± {number(cell.get('se'), decimals(cell))}, ",
                h("strong", f"n = {cell['n']:,}"),
            ),
            h("small", seeds_line(cell)) if seeds_line(cell) else None,
            strip(cell),
        ]
        metric = str(cell.get("metric", "")).replace("_", " ")
        rows.append(
            [
                task,
                [shots_label(cell), h("small", metric)],
                score,
                [*rivals, *control_lines(cell)] or "–",
                [badge(result), " ", result.text],
            ]
        )
    return rows


def control_lines(cell: Cell) -> list[Markup]:
    """Every control with its score and standard error."""
    found = {"blind": cell.get("blind"), **cell.get("controls", {})}
    return [
        h(
            "div",
            h("span", CONTROLS.get(name, name.replace("_", " "))),
            h(
                "span",
                number(numbers.get("score"), decimals(cell)),
                h("span", f" ± {number(numbers.get('se'), decimals(cell))}", class_="unit"),
            ),
            class_="rival-line control",
        )
        for name, numbers in found.items()
        if numbers
    ]


def score_section(cells: list[Cell]) -> Markup:
    """The table, how to read it, and what each task asks."""
    used = {name for cell in cells for name in cell.get("baselines", {})}
    columns = ["Task", "Shots", "Score", "Beside it", "Verdict"]
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
                "that does not fall there was not earned by seeing. “Other answers in "
                "shots” gives every shot the answer of another sample: a score that does not fall "
                "there was not learned from the shots. The verdict compares with the "
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

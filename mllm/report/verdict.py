"""What a score says beside its controls: against the strongest rival, and whether it saw."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from mllm.report.markup import number

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
    "final": "unseen artwork, final half: for reporting",
    "development": "unseen artwork, development half: for tuning",
    "new_concepts": "concepts that no training picture, caption or text picture showed",
    "test": "official test split",
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


def shots_label(cell: Cell) -> str:
    """k as the evaluation wrote it: `0*` is not `0`."""
    return str(cell.get("shots", cell["num_shots"]))


def by_task(cells: list[Cell]) -> dict[tuple[str, Any], list[Cell]]:
    """Cells by suite and split."""
    groups: dict[tuple[str, Any], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["suite"], cell.get("split")), []).append(cell)
    return groups


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
    parts += [part for part in map(partial(against_control, cell), TAKEN) if part]
    same = (cell.get("extra") or {}).get("zero_shot_same_queries")
    if same is not None:
        parts.append(f"{number(same, decimals(cell))} without shots on the same queries")
    text = "; ".join(parts)
    return Verdict(word, (text[:1].upper() + text[1:]) if text else "nothing to compare with")


# control: what it did. The blind one has sentences of its own.
TAKEN = {
    "no_picture": "without a picture",
    "permuted": "with other answers in the shots",
}


def against_control(cell: Cell, name: str) -> str | None:
    """Whether the score lives from what the control took away; None where that did not run."""
    control = cell.get("controls", {}).get(name) or {}
    if control.get("score") is None:
        return None
    drop = (cell["score"] - control["score"]) * (-1 if is_lower_better(cell) else 1)
    if drop > 2 * math.hypot(cell.get("se") or 0.0, control.get("se") or 0.0):
        return f"{number(control['score'], decimals(cell))} {TAKEN[name]}"
    return f"no better than {TAKEN[name]}"


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

    def place(cell: Cell) -> tuple[int, int, float, str]:
        split = str(cell.get("split") or "")
        rank = SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)
        return suites.index(cell["suite"]), rank, cell["num_shots"], shots_label(cell)

    return sorted(cells, key=place)


def decimals(cell: Cell) -> int:
    return 2 if is_lower_better(cell) else 1


def headline_cell(cells: list[Cell]) -> Cell | None:
    """The score to read first: naming on the final half, else any zero-shot naming."""
    naming = [c for c in cells if c["suite"] == "naming" and c["num_shots"] == 0]
    final = [c for c in naming if c.get("split") == "final"]
    return next(iter(final or naming), None)

"""RelativeSize, MemoryColor and ColorTerms, as they are downloaded."""

import json
from pathlib import Path

import pytest

from evals.api import CandidateScore
from evals.options import TaskOptions
from evals.run import CellOptions, run_cell
from evals.tasks.facts import ColorTerms, MemoryColor, RelativeSize
from mllm.errors import UserError
from tests.evals.oracle import Oracle

ALONE = CellOptions(num_shots=0)
COLOURS = [
    "black",
    "blue",
    "brown",
    "green",
    "grey",
    "orange",
    "pink",
    "purple",
    "red",
    "white",
    "yellow",
]


class Affirmer(Oracle):
    """Says yes to everything, or to pairs whose bigger thing comes first in the alphabet."""

    def __init__(self, is_alphabetical: bool = False) -> None:
        super().__init__()
        self.is_alphabetical = is_alphabetical

    def loglikelihood(self, requests):
        self._take(requests)
        rows = []
        for request in requests:
            words = request.prompt.query.segments[0].text.removesuffix("?").split()
            is_yes = not self.is_alphabetical or words[1] < words[-1]
            right = " Yes" if is_yes else " No"
            texts = request.candidates
            rows.append([CandidateScore(t, -1.0 if t == right else -9.0, 1, 3, 3) for t in texts])
        return rows


def test_both_orders_are_asked_and_always_yes_is_half_right(tmp_path: Path):
    (tmp_path / "sizePairsFull.txt").write_bytes(b"bear ant\r\ncat\tfly\r\nelephant dog\r\n")
    task = RelativeSize(tmp_path)
    model = Affirmer()
    cell = run_cell(task, model, ALONE, tmp_path / "yes")
    assert cell is not None and (cell["score"], cell["n"], cell["chance"]) == (50.0, 3, 50.0)
    assert (cell["extra"]["accuracy_bigger_first"], cell["extra"]["accuracy_smaller_first"]) == (
        100.0,
        0.0,
    )
    assert cell["se"] == 0.0  # each pair has one of two: nothing varies
    prompts = [request.prompt.query.segments[0].text for request in model.requests]
    assert prompts[0] == "Is bear larger than ant?" and prompts[3] == "Is ant larger than bear?"
    assert model.requests[0].candidates == (" Yes", " No")

    # bear > ant is after it in the alphabet: wrong in both orders; the others right or wrong alike.
    cell = run_cell(task, Affirmer(is_alphabetical=True), ALONE, tmp_path / "alphabet")
    assert cell is not None and cell["score"] == pytest.approx(100 / 3, abs=0.01)
    rows = [
        json.loads(line)
        for line in (tmp_path / "alphabet/relative_size_all/k0/seed0/samples.jsonl")
        .read_text()
        .split("\n")[:-1]
    ]
    assert [row["score"] for row in rows] == [0.0, 1.0, 0.0]
    assert rows[0]["swapped"]["gold"] == "No"


def test_wrong_size_pairs_are_named(tmp_path: Path):
    path = tmp_path / "sizePairsFull.txt"
    for text, message in (
        ("bear ant\nbear\n", "line 2: is 'bear', must be two things"),
        ("bear ant\nant bear\n", "line 2: 'ant bear' was already there"),
        ("bear bear\n", "line 1: is 'bear bear', must be two things"),
        ("\n", "holds no pair"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            RelativeSize(tmp_path)


def test_colours_are_asked_of_all_eleven(tmp_path: Path):
    header = "Index,Descriptor,Item,Color\r\n"
    rows = "1,a ,sunflower,yellow\r\n2,the inside of a ,melon,red\r\n3,,grass,green\r\n"
    (tmp_path / "memory_color_data.csv").write_bytes(b"\xef\xbb\xbf" + (header + rows).encode())
    task = MemoryColor(tmp_path)
    prompts = [task.query(query_id).segments[0].text for query_id in task.ids()]  # type: ignore[union-attr]
    assert prompts == [
        "The color of a sunflower is",
        "The color of the inside of a melon is",
        "The color of grass is",
    ]
    model = Oracle()
    cell = run_cell(task, model, ALONE, tmp_path / "out")
    assert cell is not None and cell["score"] == 100.0
    assert cell["chance"] == pytest.approx(9.09, abs=0.01) and cell["blind"] is None
    assert model.requests[0].candidates == tuple(f" {colour}" for colour in COLOURS)
    assert list(cell["left_out"].values()) == [106]

    (tmp_path / "color-concrete-objects.csv").write_text("object,color\nash,gray\nbanana,yellow\n")
    terms = ColorTerms(tmp_path, TaskOptions(norm="sum"))
    assert terms.query("ash").gold == "grey" and terms.norm == "sum"


def test_wrong_colours_are_named(tmp_path: Path):
    path = tmp_path / "color-concrete-objects.csv"
    for text, message in (
        ("object,color\nash,teal\n", "line 2: \"color\" is 'teal', must be one of black, blue"),
        ("thing,color\nash,grey\n", r"no column 'object' \(found thing, color\)"),
        ("object,color\nash,grey\nash,grey\n", 'line 3: "object" ash was already there'),
        ("object,color\n", "holds no row"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            ColorTerms(tmp_path)

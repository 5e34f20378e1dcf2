"""The report over training runs: held-out scores, completions with their pictures, the ledger."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from corpora.document import Document, ImageSegment, TextSegment
from mllm.errors import UserError
from mllm.report import main
from mllm.report.charts import engine_charts, loss_charts
from mllm.report.completions import completion_section, spread
from mllm.report.inputs import read_runs
from mllm.report.ledger import ledger_section
from mllm.report.markup import render
from tests.conftest import write_corpus
from tests.test_report import COLORS, HOSTILE, Tags, page, picture, write_run


def edit_lines(path: Path, change: Any) -> None:
    """Puts `change(line)` in the place of each object of a JSONL file."""
    objects = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(value)) + "\n" for value in objects))


def sample(i: int, completion: str) -> dict[str, Any]:
    return {
        "source": "pairs",
        "key": f"sq{i}",
        "image": 0,
        "prompt": "<image>",
        "completion": completion,
        "reference": f"A {COLORS[i]} square.",
    }


def write_generations(run: Path, steps: range, num_pictures: int = 3) -> None:
    lines = [
        {"step": step, "samples": [sample(i, f"{run.name} {step}") for i in range(num_pictures)]}
        for step in steps
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "generations.jsonl").write_text(text)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    documents = [
        Document(f"sq{i}", (ImageSegment(picture(color)), TextSegment("x")))
        for i, color in enumerate(COLORS)
    ]
    return write_corpus(tmp_path / "held_out", documents)


@pytest.fixture
def run(tmp_path: Path, held_out: Path) -> Path:
    """A run that says something of three held-out pictures, with bits per byte."""
    run = write_run(tmp_path / "pretrain")
    write_generations(run, range(20, 61, 20))
    with_corpus(run, held_out)

    def with_bits(line: dict[str, Any]) -> dict[str, Any]:
        if "validation" not in line:
            return line
        bits = {name: loss / 3 for name, loss in line["validation"].items()}
        return line | {"validation_bits_per_byte": bits}

    edit_lines(run / "metrics.jsonl", with_bits)
    return run


def with_corpus(run: Path, corpus: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["validation"] = [{"name": "pairs", "path": str(corpus)}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def told(*runs: Path, num_pictures: int = 12) -> str:
    """The section of completions of a page over these runs."""
    return completion_section(read_runs(list(runs)), num_pictures) or ""


def set_aside(run: Path) -> str:
    """What the section of the ledger says."""
    return Tags(ledger_section(read_runs([run])) or "").visible


def shown_pictures(text: str) -> list[np.ndarray]:
    urls = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url)))) for url in urls]


def test_completions_stand_beside_their_pictures_step_after_step(run: Path) -> None:
    text = told(run)
    seen = Tags(text).visible
    assert "3 of 3 pictures." in seen
    story = "Given: <image> Reference: A red square. Step It said 20 pretrain 20 40 pretrain 40"
    assert f"{story} 60 pretrain 60" in seen
    for pixels, color in zip(shown_pictures(text), COLORS[:3], strict=True):
        expected = np.asarray(Image.new("RGB", (1, 1), color)).astype(int)
        assert np.abs(pixels - expected).max() < 6  # JPEG
    assert len(shown_pictures(told(run, num_pictures=2))) == 2


def test_runs_that_were_asked_the_same_stand_side_by_side(
    run: Path, held_out: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", num_steps=30)
    write_generations(other, range(20, 31, 10), num_pictures=1)
    text = told(run, other)
    assert "Step pretrain other 20 pretrain 20 other 20 30 – other 30 40 pretrain 40 –" in (
        Tags(text).visible
    )
    assert len(shown_pictures(text)) == 3  # of the run whose config names the corpus


def test_pictures_that_are_gone_leave_a_note(run: Path, held_out: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "emptier", [Document("sq1", (ImageSegment(picture("green")),))])
    with_corpus(run, tmp_path / "emptier")
    text = told(run)
    assert len(shown_pictures(text)) == 1 and "no sample sq0 any more" in Tags(text).visible
    shutil.rmtree(tmp_path / "emptier")
    text = told(run)
    seen = Tags(text).visible
    assert not shown_pictures(text) and seen.count("No pictures of pairs:") == 1
    assert "pretrain 60" in seen


def test_of_many_validations_some_are_shown() -> None:
    steps = list(range(0, 1000, 10))
    chosen = spread(steps, 8)
    assert len(chosen) == 8 and chosen[0] == 0 and chosen[-1] == 990
    gaps = np.diff(chosen)
    assert gaps.max() - gaps.min() <= 10 and spread([1, 2], 8) == [1, 2]


def test_what_a_model_or_a_key_says_never_becomes_markup(run: Path) -> None:
    def both() -> str:
        runs = read_runs([run])
        return f"{completion_section(runs, 12)}{ledger_section(runs)}"

    clean = {tag for tag, _ in Tags(both()).elements}
    hostile = {key: HOSTILE for key in ("source", "key", "prompt", "completion", "reference")}
    edit_lines(
        run / "generations.jsonl", lambda line: line | {"samples": [hostile, {"image": HOSTILE}]}
    )
    entries = [{"key": HOSTILE, "reason": HOSTILE, "step": HOSTILE}, {"samples": HOSTILE}]
    (run / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    tags = Tags(both())
    assert {tag for tag, _ in tags.elements} <= clean
    assert not [name for _, attrs in tags.elements for name in attrs if name.startswith("on")]
    assert tags.visible.count("<script>alert(1)</script>") > 8 and "<script" not in both()


def test_bits_per_byte_are_drawn_where_they_are_known(run: Path, tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", seed=1)

    def losses(*runs: Path) -> str:
        return render(loss_charts(read_runs(list(runs))))

    assert "Validation, bits per byte by source" in losses(run)
    assert "its per byte" not in losses(old)
    (figure,) = re.findall(r"Bits per byte on text.*?</figure>", losses(run, old), flags=re.DOTALL)
    assert "pretrain" in figure and "old" not in figure


def engine(run: Path, title: str) -> str:
    """A chart of speed and steadiness, or nothing."""
    figures = [figure for figure in engine_charts(read_runs([run])) if figure is not None]
    return "".join(figure for figure in figures if f"<strong>{title}</strong>" in figure)


def test_skipped_steps_are_crosses_below_the_gradient_norm(run: Path) -> None:
    with_cross = engine(run, "Gradient norm")
    edit_lines(run / "metrics.jsonl", lambda line: line | {"applied": True})
    without = engine(run, "Gradient norm")
    assert "× skipped step" in with_cross and "skipped" not in without
    assert with_cross.count("<use ") == without.count("<use ") + 1


def test_metrics_that_a_run_may_have_are_drawn_where_it_has_them(run: Path) -> None:
    assert engine(run, "MFU") == ""
    edit_lines(run / "metrics.jsonl", lambda line: line | {"mfu": 0.31, "loss_scale": 2.0})
    assert engine(run, "MFU") and engine(run, "Loss scale") and not engine(run, "Slowest rank")


def test_the_ledger_is_grouped_by_reason(run: Path) -> None:
    entries = [
        {"shard": "a.tar", "key": f"k{i}", "reason": f"image {i}: broken picture", "step": 2 + i}
        for i in range(5)
    ]
    entries += [{"step": 9, "reason": "step skipped: non-finite gradients", "samples": ["a", "b"]}]
    entries += [{"step": 11, "reason": "loss spike: 7.1 after 3.2", "samples": ["c"]}]
    entries += [{"key": f"z{i}", "reason": "x" * (i + 1)} for i in range(30)]
    (run / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    seen = set_aside(run)
    assert "Masked sample image 0: broken picture 5 2 to 6 k0, k1, k2 and 2 more" in seen
    assert "13 more reasons 13" in seen
    entries = entries[:7]
    (run / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    seen = set_aside(run)
    assert "Step step skipped: non-finite gradients 1 9 a, b" in seen
    assert "Step loss spike: 7.1 after 3.2 1 11 c" in seen


def test_runs_of_other_lengths_and_sources_share_a_page(run: Path, tmp_path: Path) -> None:
    """Also one without validation, and one that has not begun."""
    short = write_run(tmp_path / "short", num_steps=7, planned=7)
    metrics = short / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"pairs"', '"novel"'))
    (short / "ledger.jsonl").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    text = page(tmp_path / "a.html", run, short, empty)
    seen = Tags(text).visible
    for title in (
        "What it said while it trained",
        "What was set aside",
        "Loss on all sources",
        "Loss on novel",
        "Loss on pairs",
        "Bits per byte on text",
    ):
        assert title in seen, title
    legends = re.findall(r'class="legend">(.*?)</div>', text)
    assert any("pretrain" in legend and "short" in legend for legend in legends)


def test_nothing_to_draw_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text('{"step": 1, "lo')
    (empty / "generations.jsonl").write_text('{"step": 1, "sam')
    assert main([str(empty)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("no curves: ") and str(empty) in lines[1]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{oops\n", "generations.jsonl: line 1 is not JSON"),
        ('{"samples": []}\n', "line 1 has no integer `step`"),
        ('{"step": 1, "samples": [3]}\n', "line 1 has no list of `samples`"),
    ],
)
def test_broken_generations_are_named(run: Path, line: str, named: str) -> None:
    (run / "generations.jsonl").write_text(line)
    with pytest.raises(UserError) as caught:
        read_runs([run])
    assert named in str(caught.value) and "\n" not in str(caught.value)

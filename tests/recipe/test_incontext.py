"""In-context learning that can be seen: the recipe as it stands, and what its scores must be."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "mllm" / "configs" / "recipe_incontext.yaml"
CHANCE = 25.0


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Cells of results.json by their number of shots."""
    found = json.loads((folder / "results.json").read_text())["cells"]
    return {cell["shots"]: cell for cell in found}


def is_near_chance(numbers: dict[str, Any]) -> bool:
    return abs(numbers["score"] - CHANCE) < 3 * numbers["se"]


@pytest.mark.slow
def test_a_model_learns_from_its_shots_and_from_nothing_else(tmp_path: Path) -> None:
    """Labels and classes of the test are never trained: what is above chance came from shots."""
    subprocess.run(
        [sys.executable, "-m", "mllm.cli", "recipe", str(RECIPE)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=1800,
    )
    runs = tmp_path / "runs" / "incontext"
    seen = cells(runs / "eval")
    assert is_near_chance(seen["0"])
    scores = [seen[k]["score"] for k in ("0", "2", "4", "8")]
    errors = [seen[k]["se"] for k in ("0", "2", "4", "8")]
    for i in range(2):
        assert scores[i + 1] - scores[i] > 2 * (errors[i] ** 2 + errors[i + 1] ** 2) ** 0.5
    assert scores[3] > scores[2] - 2 * errors[3]
    assert scores[3] > 2 * CHANCE
    for k in ("4", "8"):
        controls = seen[k]["controls"]
        for control in (seen[k]["blind"], controls["no_picture"], controls["permuted"]):
            assert is_near_chance(control)
    unseeing = cells(runs / "eval_text_only")
    assert all(is_near_chance(cell) for cell in unseeing.values())

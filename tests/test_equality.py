"""design.md 6: the same losses under every ZeRO stage and split of the step, over 20 steps."""

import json
from pathlib import Path

import pytest

from mllm.launch import run_ranks
from mllm.stream.stream import TokenStream
from tests.conftest import World
from tests.equality_runs import NUM_STEPS, SETTINGS, run_config

SCRIPT = Path(__file__).with_name("equality_runs.py")
RANKS = (1, 2, 4)


@pytest.fixture(scope="module")
def table(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of each step, by run."""
    out = tmp_path_factory.mktemp("equality")
    for num_ranks in RANKS:
        with open(out / f"log-{num_ranks}", "w") as log:
            code = run_ranks([str(SCRIPT), str(world.root), str(out)], num_ranks, output=log)
        assert code == 0, (out / f"log-{num_ranks}").read_text()[-3000:]
    found = {}
    for precision, stage in SETTINGS:
        for num_ranks in RANKS:
            name = f"{precision}-zero{stage}-{num_ranks}"
            lines = map(json.loads, (out / name / "metrics.jsonl").open())
            found[name] = [line["loss"] for line in lines]
    return found


@pytest.mark.slow
def test_losses_are_equal_over_stages_and_splits(
    table: dict[str, list[float]], world: World
) -> None:
    """fp32 to 1e-5 nats, bf16 to 1e-3 of the loss; 1 x 4, 2 x 2 and 4 x 1 (ranks x micro-steps)."""
    worst = {"fp32": 0.0, "bf16": 0.0}
    for name, losses in table.items():
        precision = name.split("-")[0]
        base = table[f"{precision}-zero1-1"]
        assert len(losses) == NUM_STEPS
        scale = base if precision == "bf16" else [1.0] * NUM_STEPS
        differences = [abs(a - b) / s for a, b, s in zip(losses, base, scale, strict=True)]
        worst[precision] = max(worst[precision], *differences)
        print(f"{name:14} first {losses[0]:.5f} last {losses[-1]:.5f} off {max(differences):.1e}")
    drift = max(
        abs(a / b - 1) for a, b in zip(table["bf16-zero1-1"], table["fp32-zero1-1"], strict=True)
    )
    print(
        f"fp32 at most {worst['fp32']:.1e} nats, bf16 at most {worst['bf16']:.1e} of the loss; "
        f"bf16 beside fp32 {drift:.1e}"
    )
    assert worst["fp32"] < 1e-5 and worst["bf16"] < 1e-3 and drift < 1e-2


@pytest.mark.slow
def test_a_rank_had_no_picture_for_many_micro_steps(world: World, tmp_path: Path) -> None:
    """Else the equalities would say nothing of it."""
    stream = TokenStream.from_config(run_config(world.root, tmp_path, "fp32", 3, 2))
    rows = [
        row
        for step in range(NUM_STEPS)
        for row in stream.row_infos(step, world_size=2, micro_batch_size=1)
    ]
    images = {(row.step, row.micro_step, row.rank): row.images for row in rows}
    alone = [p for p in images if images[p] == 0 and images[(*p[:2], 1 - p[2])] > 0]
    longest = run = 0
    for place in sorted(p for p in images if p[2] == 1):
        run = 0 if images[place] else run + 1
        longest = max(longest, run)
    assert len(alone) >= 5 and longest >= 5

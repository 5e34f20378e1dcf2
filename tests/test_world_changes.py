"""Resume on another number of ranks and under another ZeRO stage, by real DeepSpeed on the CPU.

Each run has frozen parameters, tied embeddings, two groups that differ in lr and decay, and skipped
steps. What is held after loading is compared, bit by bit, with what was held at saving, both
as DeepSpeed's own gathering calls tell it; losses with those of a run that nothing interrupted.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mllm.dist import free_port
from mllm.engine import Engine, read_states
from mllm.errors import UserError
from mllm.reshape import SavedState
from tests.conftest import World

SCRIPT = Path(__file__).with_name("world_changes.py")
# Seen from 2 ranks under ZeRO-1 to 1 under ZeRO-3: 2e-9 in fp32. bf16 rounds other sums there.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3}

Leg = tuple[str, int, str, str | None, int]


def launch(world: World, out: Path, num_ranks: int, legs: list[Leg]) -> str:
    """Runs `legs` on ranks of their own, without a launcher's own seconds. Rank 0's output."""
    shared = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, str(SCRIPT), str(world.root), str(out), json.dumps(legs)]
    logs = [out / f"rank{rank}-of-{num_ranks}.log" for rank in range(num_ranks)]
    ranks = []
    for rank, log in enumerate(logs):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with open(log, "w") as file:
            ranks.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
    try:
        codes = [process.wait(2400) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    return logs[0].read_text()


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def check(out: Path, leg: Leg) -> None:
    """`leg` holds what its earlier run held and ends as the uninterrupted run does."""
    name, _, precision, earlier, step = leg
    assert earlier is not None
    loaded, saved = (
        torch.load(out / path)
        for path in (f"{name}/loaded-{step}.pt", f"{earlier}/saved-{step}.pt")
    )
    for key in ("masters", "used", "exp_avg", "exp_avg_sq"):
        assert loaded[key].keys() == saved[key].keys() and saved[key]
        for part in saved[key]:
            assert torch.equal(loaded[key][part], saved[key][part]), (key, part)
    assert loaded["groups"] == saved["groups"]
    # Half of the steps were skipped, which DeepSpeed's own counts tell but under stage 0.
    assert loaded["steps"] == saved["steps"] == [step // 2]
    assert loaded["counts"] == [step, 4 * step, step // 2]
    decays = {group["lr_scale"]: group["weight_decay"] for group in loaded["groups"]}
    assert decays == {0.5: 3.0, 1.0: 1.0}
    ours, whole = losses(out / name), losses(out / f"whole-{precision}")
    assert len(ours) == 5
    assert max(abs(a / b - 1) for a, b in zip(ours, whole, strict=True)) < TOLERANCE[precision]
    # Decay, moments and all: the weights after the last step too.
    ends = [torch.load(out / run / "saved-5.pt") for run in (name, f"whole-{precision}")]
    for part, weight in ends[1]["masters"].items():
        difference = (ends[0]["masters"][part] - weight).abs().max()
        assert difference < 10 * TOLERANCE[precision], part


CHAINS: dict[int, list[Leg]] = {
    1: [
        ("fp32-1-3", 3, "fp32", "whole-fp32", 2),
        ("fp32-1-0", 0, "fp32", "whole-fp32", 2),
    ],
    2: [
        ("fp32-1-3-2", 2, "fp32", "fp32-1-3", 4),
        ("fp32-1-0-3", 3, "fp32", "fp32-1-0", 4),
    ],
}
WHOLE: list[Leg] = [(f"whole-{p}", 1, p, None, 0) for p in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def chains(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks under ZeRO-1; these on one rank; and those on two again."""
    out = tmp_path_factory.mktemp("chains")
    for num_ranks, legs in ((2, WHOLE[:1]), (1, CHAINS[1]), (2, CHAINS[2])):
        (out / f"log-{num_ranks}").write_text(launch(world, out, num_ranks, legs))
    return out


@pytest.mark.parametrize("leg", CHAINS[1] + CHAINS[2], ids=lambda leg: leg[0])
def test_a_run_goes_on_elsewhere_as_if_nothing_had_happened(chains: Path, leg: Leg) -> None:
    check(chains, leg)


def test_the_log_says_what_changed(chains: Path) -> None:
    log = (chains / "log-1").read_text()
    assert "step-00000002 at step 2, written by 2 ranks with ZeRO-1; now 1 rank with ZeRO-3" in log
    state = json.loads((chains / "fp32-1-3/checkpoints/step-00000004/state.json").read_text())
    assert (state["world_size"], state["zero_stage"], state["applied_steps"]) == (1, 3, 2)


def test_the_schedule_goes_on(chains: Path) -> None:
    def rates(run: str) -> list[float]:
        lines = (chains / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["lr"] for line in lines]

    whole = rates("whole-fp32")
    assert rates("fp32-1-3-2") == whole
    assert whole[1] == whole[2] > whole[3] == whole[4]  # skipped steps do not count


# ------------------------------------------------------------------------------ files that are not
@pytest.fixture
def saved(chains: Path, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of two ranks under ZeRO-1, to be damaged."""
    yield Path(shutil.copytree(chains / "whole-fp32/checkpoints/step-00000002", tmp_path / "step"))


def sizes(folder: Path) -> dict[str, int]:
    moments = torch.load(folder / "saved-2.pt")["exp_avg"]
    return {name: value.numel() for name, value in moments.items()}


def opened(saved: Path, sizes: dict[str, int]) -> SavedState:
    return SavedState(saved, saved / "deepspeed", 2, 1, sizes, read_states)


def test_any_run_of_a_moment_is_put_together_from_the_ranks(chains: Path, saved: Path) -> None:
    state = opened(saved, sizes(chains / "whole-fp32"))
    moments = torch.load(chains / "whole-fp32" / "saved-2.pt")["exp_avg"]
    num_split = 0
    for name, moment in moments.items():
        num_split += sum(len(run["exp_avg"]) > 0 for run in state._runs[name]) > 1
        for start in (0, moment.numel() // 3, moment.numel() - 1):
            for numel in (1, (moment.numel() - start) // 2, moment.numel() - start):
                run = state.moment(name, "exp_avg", start, numel)
                assert torch.equal(run, moment.flatten()[start : start + numel])
    assert num_split  # a parameter lies on both ranks


@pytest.mark.parametrize(
    "name", ["model.safetensors", "deepspeed/zero_pp_rank_1_mp_rank_00_optim_states.pt"]
)
@pytest.mark.parametrize("fault", ["missing", "short", "garbage"])
def test_a_file_that_cannot_be_read_is_one_line_with_a_way_out(
    chains: Path, saved: Path, name: str, fault: str
) -> None:
    path = saved / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if fault == "short" else b"no such format" * 9)
    if fault == "missing":
        path.unlink()
    with pytest.raises(UserError) as caught:
        opened(saved, sizes(chains / "whole-fp32"))
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    assert message.endswith("start it with 2 ranks and zero.stage 1")


def test_another_model_is_refused(chains: Path, saved: Path) -> None:
    right = sizes(chains / "whole-fp32")
    name = "model.decoder.embed_tokens.weight"
    with pytest.raises(
        UserError, match=rf"{name} has {right[name] + 48} elements, .* {right[name]}"
    ):
        opened(saved, right | {name: right[name] + 48})
    with pytest.raises(UserError, match=r"model\.x has 3 elements, moments are there of 0"):
        opened(saved, right | {"model.x": 3})


class Touch:
    """Unpickled as code, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_file_is_not_run(chains: Path, saved: Path, tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(Touch(tmp_path / "made"))) is None
    assert (tmp_path / "made").exists()
    (tmp_path / "made").unlink()
    path = saved / "deepspeed" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": Touch(tmp_path / "made")}, path)
    with pytest.raises(UserError, match="not as DeepSpeed writes ZeRO-1 here"):
        opened(saved, sizes(chains / "whole-fp32"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("precision", "stage", "zero", "reason"),
    [
        ("bf16", 3, {"offload_optimizer": {"device": "nvme"}}, "offload_optimizer to nvme"),
        ("bf16", 3, {"offload_param": {"device": "nvme"}}, "offload_param to nvme"),
        ("fp16", 1, {"offload_optimizer": {"device": "cpu"}, "offload_param": None}, None),
    ],
)
def test_what_cannot_be_filled_is_told(
    precision: str, stage: int, zero: dict[str, Any], reason: str | None
) -> None:
    engine: Any = SimpleNamespace(
        precision=precision, stage=stage, settings={"zero_optimization": zero}
    )
    assert Engine.why_not_fill(engine) == reason


# ---------------------------------------------------------------------------------------- all of it
STAGES = {"fp32": (0, 1, 2, 3), "bf16": (1, 2, 3)}


def sources(num_ranks: int) -> list[Leg]:
    """Runs that nothing interrupts, under each stage."""
    return [
        (f"{precision}-{num_ranks}x{stage}", stage, precision, None, 0)
        for precision, stages in STAGES.items()
        for stage in stages
    ]


def changes(earlier: int, num_ranks: int) -> list[Leg]:
    """From each stage on `earlier` ranks to each other setting on `num_ranks`.

    In bf16, which this CPU may emulate, to one stage each: 1 to 2 to 3 to 1.
    """
    return [
        (f"{source}-{num_ranks}x{stage}", stage, precision, source, 4)
        for source, before, precision, _, _ in sources(earlier)
        for stage in STAGES[precision]
        if (earlier, before) != (num_ranks, stage)
        and (precision == "fp32" or stage == before % 3 + 1)
    ]


CHANGES = {1: changes(2, 1), 2: changes(1, 2) + changes(2, 2)}


@pytest.fixture(scope="module")
def matrix(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("matrix")
    launch(world, out, 2, WHOLE + sources(2))
    launch(world, out, 1, sources(1) + CHANGES[1])
    launch(world, out, 2, CHANGES[2])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("leg", CHANGES[1] + CHANGES[2], ids=lambda leg: leg[0])
def test_every_change_of_ranks_and_stage(matrix: Path, leg: Leg) -> None:
    check(matrix, leg)

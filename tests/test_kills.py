"""kill -9 at any moment: the same command goes on to equal losses; no checkpoint is wrong."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mllm.checkpoint_files import checkpoints, problem_of, remove_leftovers
from tests.conftest import World
from tests.scenarios import pretrain_config

SCRIPT = Path(__file__).with_name("killed_train.py")
NUM_STEPS, EVERY = 48, 2
# Of each world size: a kill in each phase, and some at random instants.
AT_OPERATIONS = ("shard write", "manifest", "rename", "latest", "prune")
NUM_INSTANTS = 4
SEED = 7


def kills(world_size: int) -> list[dict[str, Any]]:
    """A plan for one world size, in random order."""
    draws = random.Random(f"{SEED} {world_size}")
    plan = []
    for phase in ("step", *AT_OPERATIONS, *["instant"] * NUM_INSTANTS):
        is_anywhere = phase in ("step", "shard write", "instant")
        kill = {
            "phase": phase,
            "rank": draws.randrange(world_size) if is_anywhere else 0,
            "entry": draws.randint(1, 2),
            "kills_all": world_size == 1 or draws.random() < 0.5,
        }
        if phase in AT_OPERATIONS:
            kill["event"] = draws.randrange(5)
        elif phase == "step":
            kill |= {"entry": draws.randint(1, 4), "delay": draws.uniform(0, 0.03)}
        else:
            kill |= {"entry": 1, "delay": draws.uniform(0, 2.0)}
        plan.append(kill)
    draws.shuffle(plan)
    return plan


@pytest.fixture
def starts() -> Iterator[Callable[[Path, str, int, dict[str, Any] | None], int]]:
    """Starts the command on FOLDER/NAME.yaml; gives back its exit code."""
    server = subprocess.Popen(
        [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin and server.stdout

    def run(folder: Path, name: str, num_ranks: int, kill: dict[str, Any] | None) -> int:
        start = {"config": str(folder / f"{name}.yaml"), "num_ranks": num_ranks, "kill": kill}
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(start | {"log": str(folder / f"{name}.log")}) + "\n")
        server.stdin.flush()
        while not (line := server.stdout.readline().strip()).lstrip("-").isdigit():
            assert server.poll() is None  # deepspeed prints where it is imported
        return int(line)

    yield run
    server.kill()
    server.wait()


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_losses(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    starts: Callable[[Path, str, int, dict[str, Any] | None], int],
    world_size: int,
) -> None:
    """Each phase of a save is hit by one kill a world size, so by two in all."""
    fell_in: Counter[str] = Counter()
    log = str(tmp_path / "kills.jsonl")
    table, num_runs, num_resumes, num_checked, worst = [], 0, 0, 0, 0.0

    def configure(name: str, keep: int) -> Path:
        config = pretrain_config(world.root, tmp_path / name)
        values = json.loads(json.dumps(config.to_dict()))
        values["train"] |= {
            "num_steps": NUM_STEPS,
            "checkpoint_every": EVERY,
            "keep_checkpoints": keep,
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / name

    whole = configure(f"whole-{world_size}", NUM_STEPS)
    assert starts(tmp_path, whole.name, world_size, None) == 0
    assert len(checkpoints(whole / "checkpoints")) == NUM_STEPS // EVERY
    plan = kills(world_size)
    for kill in plan:
        kill["log"] = log
    while plan:
        num_runs += 1
        run_dir = configure(f"run-{world_size}-{num_runs}", 2)
        while True:
            kill = plan[0] if plan else None
            code = starts(tmp_path, run_dir.name, world_size, kill)
            for checkpoint in checkpoints(run_dir / "checkpoints"):
                if problem_of(checkpoint) is None:
                    num_checked += 1
                    assert_equal(checkpoint, whole / "checkpoints" / checkpoint.name)
            if code == 0:
                break  # it came to its end, maybe before the kill
            fallen = json.loads(Path(log).read_text().splitlines()[-1])
            said = (tmp_path / f"{run_dir.name}.log").read_text()[-3000:]
            assert kill is not None and {**fallen, **kill} == fallen, said
            plan.pop(0)
            fell_in.update(fallen["fell_in"])
            whom = "all" if kill["kills_all"] else f"rank {kill['rank']}"
            at = len(losses(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0
            where = " + ".join(fallen["fell_in"])
            table.append(f"{world_size:5}  {whom:6}  {kill['phase']:11}  {where:24}  {at:4}")
            num_resumes += 1
        ours, theirs = losses(run_dir), losses(whole)
        assert [line[0] for line in ours] == list(range(1, NUM_STEPS + 1))
        worst = max(worst, *(abs(a[1] - b[1]) for a, b in zip(ours, theirs, strict=True)))
        assert ours == theirs
        assert not list((run_dir / "checkpoints").glob(".tmp*"))
    with capsys.disabled():
        print("\nranks  killed  planned in   fell in                   steps done")
        print("\n".join(table))
        print(
            f"{len(table)} kills, {num_resumes} resumes, {num_runs} runs, {num_checked} verifying "
            f"checkpoints compared bit by bit, max loss difference {worst}; by phase: "
            + ", ".join(f"{phase} {number}" for phase, number in sorted(fell_in.items()))
        )
    assert len(table) >= 10
    assert all(fell_in[phase] for phase in ("step", *AT_OPERATIONS)), fell_in


def assert_equal(ours: Path, theirs: Path) -> None:
    """All that a resume reads, bit by bit."""
    for path in sorted(theirs.rglob("*")):
        other = ours / path.relative_to(theirs)
        if path.suffix == ".pt":  # pickles of equal content may differ in what they refer back to
            assert is_same(
                torch.load(other, weights_only=False), torch.load(path, weights_only=False)
            ), path
        elif path.is_file() and path.name != "manifest.json":
            assert other.read_bytes() == path.read_bytes(), path


def is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return type(a) is type(b) and (a == b or vars(a) == vars(b))


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / ".tmp-step-00000004" / "deepspeed").mkdir(parents=True)
    (folder / "step-00000002").mkdir()
    (folder / "latest.tmp-17").write_text("step")
    (folder / "latest").write_text("step-00000002\n")
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000002"]

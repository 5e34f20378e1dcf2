"""Running a recipe: what is skipped, what is made anew, and what signals and kills leave."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mllm.errors import UserError
from mllm.recipe.journal import Journal
from mllm.recipe.runner import run_recipe
from mllm.recipe.steps import Recipe, Step

# Each step appends its name to `log`, and writes `made` unless it is told to fail.
WORK = """
import pathlib, sys
name, folder, code = sys.argv[1:]
pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
with open("log", "a") as log:
    log.write(name + "\\n")
if code == "0":
    (pathlib.Path(folder) / "made").touch()
sys.exit(int(code))
"""
# A step that works for a minute, unless a signal or its stop file says that it must save.
LONG = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(number))
(folder / "started").touch()
if (folder / "saved").exists():
    (folder / "made").touch()
    sys.exit(0)
for _ in range(600):
    time.sleep(0.1)
    if asked or (folder / "stop").exists():
        time.sleep(0.5)  # a second signal would come in this time
        (folder / "saved").write_text(str(len(asked)))
        sys.exit(75)
"""
# A recipe of one long step, and one after it.
DRIVER = """
import sys
from pathlib import Path
from mllm.recipe.runner import run_recipe
from tests.recipe.test_runner import long_step, step
steps = [long_step(is_launched="launched" in sys.argv), step("b", "a")]
from mllm.recipe.steps import Recipe
sys.exit(run_recipe(Recipe(Path("runs"), steps)))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def step(name: str, *needs: str, code: int = 0, command: str = "x") -> Step:
    folder = Path("runs") / name
    argv = [sys.executable, "-c", WORK, name, str(folder), str(code)]
    return Step(name, argv, [name], folder, "made", command, needs)


def long_step(*, is_launched: bool = False) -> Step:
    folder = Path("runs/a")
    argv = [sys.executable, "-c", LONG, str(folder)]
    stop_file = folder / "stop" if is_launched else None
    return Step("a", argv, ["a"], folder, "made", "x", (), stop_file=stop_file)


def run(*steps: Step, **settings: bool) -> int:
    return run_recipe(Recipe(Path("runs"), list(steps)), **settings)


def log() -> list[str]:
    return Path("log").read_text().split()


def test_finished_steps_are_skipped_until_command_or_output_changes() -> None:
    chain = [step("a"), step("b", "a"), step("c")]
    assert run(*chain) == 0 and log() == ["a", "b", "c"]
    assert run(*chain) == 0 and log() == ["a", "b", "c"]
    chain[2] = step("c", command="another")
    assert run(*chain) == 0 and log() == ["a", "b", "c", "c"]
    Path("runs/b/made").unlink()
    assert run(*chain) == 0 and log() == ["a", "b", "c", "c", "b"]
    entries = json.loads(Path("runs/times.json").read_text())
    assert all(entry["is_done"] and entry["seconds"] > 0 for entry in entries.values())


def test_what_comes_from_inputs_made_anew_is_deleted_only_on_request() -> None:
    chain = [step("a"), step("b", "a"), step("c", "b"), step("d")]
    assert run(*chain) == 0
    Path("runs/b/of old inputs").touch()
    chain[0] = step("a", command="another")
    with pytest.raises(UserError, match="'b' in runs/b, 'c' in runs/c; --redo deletes"):
        run(*chain)
    assert log() == ["a", "b", "c", "d"]  # it was said before anything ran
    assert run(*chain, redo=True) == 0
    assert log() == ["a", "b", "c", "d", "a", "b", "c"]
    assert os.listdir("runs/b") == ["made"]


def test_a_kill_between_a_step_and_those_that_need_it_hides_nothing() -> None:
    chain = [step("a"), step("b", "a")]
    assert run(*chain) == 0
    anew = step("a", command="another")
    assert run(anew) == 0  # and here the recipe was killed
    with pytest.raises(UserError, match="'b' in runs/b"):
        run(anew, chain[1])
    assert run(anew, chain[1], redo=True) == 0 and log() == ["a", "b", "a", "b"]


def test_a_linked_folder_is_emptied_and_stays_a_link() -> None:
    Path("disk").mkdir()
    Path("runs").mkdir()
    Path("runs/b").symlink_to(Path("disk").resolve())
    assert run(step("a"), step("b", "a")) == 0
    Path("disk/old").mkdir()
    assert run(step("a", command="another"), step("b", "a"), redo=True) == 0
    assert Path("runs/b").is_symlink() and os.listdir("disk") == ["made"]


def test_a_folder_without_an_entry_is_left_to_its_command() -> None:
    """Trained by hand before there was a recipe: never deleted, whatever ran before it."""
    Path("runs/b").mkdir(parents=True)
    Path("runs/b/weights").touch()
    assert run(step("a"), step("b", "a"), redo=True) == 0
    assert Path("runs/b/weights").exists() and log() == ["a", "b"]


def test_a_failing_step_ends_the_recipe_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(step("a"), step("b", code=3), step("c")) == 3
    assert log() == ["a", "b"]
    assert capsys.readouterr().err == "mllm: b ended with 3; the same command goes on\n"
    first = Journal(Path("runs/times.json")).entries["b"]["seconds"]
    assert run(step("a"), step("b", code=75), step("c")) == 75
    assert capsys.readouterr().err == "mllm: b saved and stopped; the same command goes on\n"
    assert Journal(Path("runs/times.json")).entries["b"]["seconds"] >= first > 0
    assert run(step("a"), step("b"), step("c")) == 0 and log() == ["a", "b", "b", "b", "c"]


def test_from_a_step_on_what_lies_before_is_taken_as_it_is() -> None:
    chain = [step("a", code=1), step("b", "a")]
    assert run_recipe(Recipe(Path("runs"), chain), first=1) == 0
    assert log() == ["b"]


def start(*words: str) -> subprocess.Popen:
    root = Path(__file__).parent.parent.parent
    paths = f"{root}:{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As at a terminal: a job that a shell began in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not Path("runs/a/started").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_stage_once_and_the_recipe_ends_with_75(number: int) -> None:
    """As at a terminal, where Ctrl-C goes to the whole process group."""
    recipe = start()
    os.killpg(recipe.pid, number)
    assert recipe.wait(30) == 75
    assert Path("runs/a/saved").read_text() == "1"
    assert recipe.stderr is not None and "a saved and stopped" in recipe.stderr.read()
    assert run(long_step(), step("b", "a")) == 0 and log() == ["b"]


def test_a_launched_stage_is_asked_by_its_stop_file() -> None:
    recipe = start("launched")
    with pytest.raises(UserError, match="another recipe is at work"):
        run(long_step())
    os.killpg(recipe.pid, signal.SIGTERM)
    assert recipe.wait(30) == 75
    assert Path("runs/a/saved").read_text() == "0"


def test_a_killed_recipe_takes_its_stage_along_and_goes_on_there() -> None:
    recipe = start()
    recipe.kill()
    recipe.wait()
    end = time.monotonic() + 30
    while not Path("runs/a/saved").exists():  # the stage was told by the kernel
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not Journal(Path("runs/times.json")).entries["a"]["is_done"]
    assert run(long_step(), step("b", "a")) == 0 and log() == ["b"]


def test_a_moved_config_is_written_before_its_step() -> None:
    moved = replace(step("a"), moved_config=(Path("runs/a.yaml"), "seed: 1\n"))
    assert run(moved) == 0 and Path("runs/a.yaml").read_text() == "seed: 1\n"

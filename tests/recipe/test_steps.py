"""A recipe's file: what it spells, what follows from its paths, and mistakes in one line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm.errors import UserError
from mllm.recipe.steps import Recipe, read_recipe, resolve

CONFIGS = Path(__file__).parent.parent.parent / "mllm" / "configs"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stage(name: str, **changes: Any) -> dict[str, Any]:
    """A training step, and its config beside the recipe."""
    keys = {k: changes.pop(k) for k in ("run_dir", "tokenizer", "init_from") if k in changes}
    config = {"run_dir": f"runs/{name}", "tokenizer": "runs/tokenizer"} | keys
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config | changes.pop("config", {})))
    return {"name": name, "train": f"{name}.yaml"} | changes


def command(name: str, *words: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "mllm": list(words), "writes": f"runs/{name}"} | changes


def recipe(*steps: dict[str, Any], out: Path | None = None, **keys: Any) -> Recipe:
    path = Path("recipe.yaml")
    path.write_text(yaml.safe_dump({"out": "runs", "steps": list(steps)} | keys))
    return resolve(read_recipe(path), path, out)


TOKENIZER = command("tokenizer", "tokenizer", "train", "shards", "--out", "runs/tokenizer")
EXPORT = command("export", "export", "runs/tuned", "--out", "runs/export")


def test_steps_need_those_whose_folders_they_name() -> None:
    steps = recipe(
        TOKENIZER,
        stage("seen", tokenizer="elsewhere"),
        stage("tuned", init_from="runs/seen/checkpoints/step-00000003"),
        EXPORT,
    ).steps
    assert [step.needs for step in steps] == [(), (), ("tokenizer", "seen"), ("tuned",)]
    assert [step.wants for step in steps] == [(), ("elsewhere",), (), ()]
    assert steps[2].shown == ["mllm", "train", "tuned.yaml"]
    assert steps[3].argv[:3] == [sys.executable, "-m", "mllm.cli"]
    assert (steps[2].folder, steps[2].output) == (Path("runs/tuned"), "checkpoints/latest")


def test_ranks_and_the_launcher() -> None:
    ranks, launched = recipe(
        stage("a", num_ranks=3, overrides=["seed=4"]),
        stage("b", deepspeed=["--num_gpus", 8], overrides=["seed=4"]),
    ).steps
    assert ranks.shown == ["mllm", "train", "a.yaml", "--num-ranks", "3", "seed=4"]
    assert launched.shown[:3] == ["deepspeed", "--num_gpus", "8"]
    assert launched.shown[-2:] == ["b.yaml", "seed=4"] and "train.py" in launched.shown[3]
    # A signal would orphan the launcher's ranks.
    assert launched.stop_file == Path("runs/b/stop") and ranks.stop_file is None


def test_only_what_makes_another_run_changes_a_training_steps_fingerprint() -> None:
    def print_of(**changes: Any) -> str:
        return recipe(stage("a", **changes)).steps[0].fingerprint

    before = print_of()
    assert print_of(num_ranks=2) == print_of(deepspeed=["--num_gpus", 2]) == before
    for harmless in ("train.checkpoint_every=7", "zero.stage=3", "run_dir=runs/b"):
        assert print_of(overrides=[harmless]) == before
    for other in (
        *("train.peak_lr=1", "seed=1", "train.num_steps=3"),
        *("tokenizer=elsewhere", "vision_weights=clip.pt"),
    ):
        assert print_of(overrides=[other]) != before
    Path("list.yaml").write_text("a: 1")
    eval_step = command("eval", "eval", "demo", "list.yaml")
    before = recipe(eval_step).steps[0].fingerprint
    Path("list.yaml").write_text("a: 2")
    assert recipe(eval_step).steps[0].fingerprint != before


def test_another_out_folder_moves_every_path_in_it() -> None:
    first = stage("a", run_dir="runs/a", tokenizer="runs/tokenizer", init_from="runs-old/x")
    Path("runs-old/x").mkdir(parents=True)
    text = Path("a.yaml").read_text()
    Path("a.yaml").write_text(f"# comment\n{text}")
    export = command("export", "export", "runs/a", "--out", "runs/export")
    moved, exported = recipe(
        first | {"overrides": ["vision_weights=runs/w"]}, export, out=Path("x/y")
    ).steps
    assert moved.folder == Path("x/y/a") and exported.folder == Path("x/y/export")
    assert moved.shown == ["mllm", "train", "x/y/a.yaml", "vision_weights=x/y/w"]
    assert exported.shown == ["mllm", "export", "x/y/a", "--out", "x/y/export"]
    assert moved.moved_config is not None
    path, text = moved.moved_config
    assert path == Path("x/y/a.yaml") and text.startswith("# comment")
    assert yaml.safe_load(text) == {
        "run_dir": "x/y/a",
        "tokenizer": "x/y/tokenizer",
        "init_from": "runs-old/x",
    }


def mistakes() -> list[tuple[Any, str]]:
    """(what makes the recipe, what its error must say)"""
    return [
        (
            lambda: recipe(TOKENIZER | {"wirtes": "x"}),
            r"unknown key steps\[0\].wirtes; did you mean",
        ),
        (lambda: recipe(TOKENIZER, stpes=[]), "unknown key stpes; did you mean steps"),
        (lambda: recipe(), "a recipe has at least one"),
        (lambda: recipe(TOKENIZER, TOKENIZER), "two steps are named 'tokenizer'"),
        (lambda: recipe({"name": "a"}), "'a' needs either `mllm` or `train`"),
        (lambda: recipe(command("a", "exprot")), "no verb 'exprot' of mllm; did you mean export"),
        (lambda: recipe(TOKENIZER | {"writes": None}), "needs `writes`"),
        (lambda: recipe(TOKENIZER | {"num_ranks": 2}), "num_ranks goes with `train`"),
        (lambda: recipe(stage("a", writes="x")), "leave out `writes`"),
        (lambda: recipe(stage("a", overrides=[{"seed": 1}])), "overrides"),
        (lambda: recipe({"name": "a", "train": "no.yaml"}), "cannot read config no.yaml"),
        (lambda: recipe(stage("a", config={"trian": {}})), "a.yaml: unknown key trian"),
        (lambda: recipe(stage("a", overrides=["seed"])), "section.key=value"),
        (
            lambda: recipe(stage("a", init_from="runs/nowhere")),
            "'a' begins from runs/nowhere, which is not there and which no step makes",
        ),
        (
            lambda: recipe(stage("a", init_from="runs/b"), stage("b")),
            "'a' begins from runs/b, which the later step 'b' makes; put that one first",
        ),
        (
            lambda: recipe(stage("a", init_from="runs/b"), stage("b", init_from="runs/a")),
            "init_from goes round in a circle: 'a' from 'b' from 'a'",
        ),
        (
            lambda: recipe(stage("a", init_from="runs/a")),
            "init_from goes round in a circle: 'a' from 'a'",
        ),
        (
            lambda: recipe(stage("a"), stage("b", run_dir="runs/a")),
            "'b' writes runs/a, where step 'a'",
        ),
        (lambda: recipe(TOKENIZER, stage("a", run_dir="runs")), "where step 'tokenizer' lies too"),
        (lambda: recipe(stage("a", run_dir="runs")), "times.json lies too"),
        (lambda: recipe(stage("a", run_dir=".")), "give it a folder of its own"),
    ]


@pytest.mark.parametrize("number", range(len(mistakes())))
def test_a_mistake_is_one_line_that_says_what_to_mend(number: int) -> None:
    make, message = mistakes()[number]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_verb_prints_the_commands_and_names_mistakes(tmp_path: Path) -> None:
    recipe(TOKENIZER, stage("tuned"), EXPORT)

    def run(*words: str) -> subprocess.CompletedProcess:
        argv = [str(Path(sys.executable).with_name("mllm")), "recipe", "recipe.yaml", *words]
        return subprocess.run(argv, capture_output=True, text=True)

    shown = run("--dry-run", "--from", "tuned")
    assert shown.returncode == 0 and not Path("runs").exists()
    assert shown.stdout.splitlines() == [
        "[tuned] to be run",
        "  mllm train tuned.yaml",
        "[export] to be run",
        "  mllm export runs/tuned --out runs/export",
    ]
    wrong = run("--from", "exprot")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == "mllm: error: --from exprot: no such step; did you mean 'export'?\n"
    # Before the first step takes its time, it is known that a later one cannot begin.
    Path("tuned.yaml").write_text("{run_dir: runs/tuned, tokenizer: absent}")
    late = run()
    assert late.returncode == 2 and "'tuned' reads absent, which is not there" in late.stderr
    assert not Path("runs/tokenizer").exists()


@pytest.mark.parametrize("name", ["recipe_demo", "recipe_smoke"])
def test_the_demos_steps_write_below_its_folder_wherever_that_is(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    steps = resolve(read_recipe(path), path, Path("elsewhere")).steps
    folders = [step.folder for step in steps]
    assert len(set(folders)) == len(folders) == 6
    assert all(folder.parent == Path("elsewhere") for folder in folders)
    assert not any("runs/" in word for step in steps for word in step.shown)
    moved = [step.moved_config for step in steps if step.moved_config]
    assert len(moved) == 2
    assert not any("runs/demo" in text.split("run_dir:")[1] for _, text in moved)
    assert steps[-1].needs == ("corpus", "export") and steps[3].needs[-1] == "vision stage"

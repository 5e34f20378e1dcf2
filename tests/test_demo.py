"""The demo's steps: finished ones are skipped, stale ones are cleared, configs count as input."""

import sys
from pathlib import Path

from mllm.demo import Step, Times, run, steps


def step_of(tmp_path: Path, code: int = 0) -> Step:
    folder = tmp_path / "out"
    script = f"import pathlib, sys; pathlib.Path(r'{folder}').mkdir(exist_ok=True); "
    script += (
        f"import time; time.sleep(0.2); pathlib.Path(r'{folder}/done').touch(); sys.exit({code})"
    )
    config = tmp_path / "config.yaml"
    config.write_text("a: 1\n")
    return Step("a step", [sys.executable, "-c", script, str(config)], folder, "done")


def test_a_finished_step_is_known_until_its_command_config_or_output_changes(
    tmp_path: Path,
) -> None:
    step, times = step_of(tmp_path), Times(tmp_path / "times.json")
    assert not times.is_done(step)
    assert run(step, times) == 0 and times.is_done(step)
    assert Times(tmp_path / "times.json").is_done(step)
    (tmp_path / "config.yaml").write_text("a: 2\n")
    assert not times.is_done(step)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (step.folder / "done").unlink()
    assert not times.is_done(step)


def test_a_failed_step_is_not_done_and_its_time_adds_up(tmp_path: Path) -> None:
    step, times = step_of(tmp_path, code=3), Times(tmp_path / "times.json")
    assert run(step, times) == 3 and not times.is_done(step)
    first = times.entries["a step"]["seconds"]
    run(step, times)
    assert times.entries["a step"]["seconds"] >= first > 0


def test_every_step_names_where_it_writes_below_the_out_folder(tmp_path: Path) -> None:
    chain = steps(tmp_path, is_small=True, exclude=None)
    folders = [step.folder for step in chain]
    assert len(set(folders)) == len(folders) == 6
    assert all(folder.parent == tmp_path for folder in folders)
    configs = [word for step in chain for word in step.argv if word.endswith(".yaml")]
    assert len(configs) == 2
    for config in configs:
        assert "runs/demo" not in Path(config).read_text().split("run_dir:")[1]

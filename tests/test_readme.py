"""Every command in the README's code blocks is one that exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.cli import VERBS
from mllm.config import load_config
from mllm.recipe.steps import read_recipe, resolve

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.split("#")[0].strip()
]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_no_place_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z]+@", (ROOT / "README.md").read_text())


def test_the_readme_shows_the_commands_that_matter() -> None:
    shown = "\n".join(COMMANDS)
    for command in ("make demo", "make test", "make chat", "mllm train", "mllm eval", "deepspeed "):
        assert command in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_real(command: str) -> None:
    words = command.split()
    if words[0] == "torchrun":  # its own options, then a verb of ours
        words = ["mllm", *words[words.index("mllm.cli") + 1 :]]
    for config in re.findall(r"mllm/configs/\S+\.yaml", command):
        path = ROOT / config
        if path.stem.startswith("recipe_"):
            resolve(read_recipe(path), path)
        else:
            load_config(path)
    if words[0] == "make":
        assert words[1] in TARGETS
    elif words[0] == "deepspeed":
        assert (ROOT / words[words.index("2") + 1]).is_file()
    elif words[0] == "mllm":
        assert words[1] in VERBS
        subcommand = [words[2]] if words[1] in ("corpora", "tokenizer", "stream") else []
        mllm = Path(sys.executable).with_name("mllm")
        done = subprocess.run(
            [str(mllm), words[1], *subcommand, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0
        for option in re.findall(r"--[a-z-]+", " ".join(words)):
            assert option in done.stdout, f"{option} is not in `mllm {words[1]} --help`"
    else:
        assert words[0] in ("git", "cd", "."), command

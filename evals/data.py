"""Where data sets lie: `--data DIR`, `--data NAME=DIR`, `--data FILE.yaml`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mllm.errors import UserError

DEMO = "demo"  # the data set that a --data without a name stands for
DEFAULT_DEMO_DIR = Path("runs/demo/corpus")


@dataclass(frozen=True)
class DataPaths:
    """Folders by the name of a data set or of a task."""

    folders: dict[str, Path] = field(default_factory=dict)
    given: frozenset[str] = frozenset()  # names that the user, and no default, gave a folder

    def is_given(self, task: str, data: str) -> bool:
        return not self.given.isdisjoint((task, data))

    def find(self, task: str, data: str) -> Path | None:
        """The folder of a task: its own, or its data set's; None where none was named."""
        return self.folders.get(task) or self.folders.get(data)


def read_data_paths(arguments: Iterable[str], known: Iterable[str]) -> DataPaths:
    """Folders from the command line; a later argument overrides an earlier one.

    Args:
        arguments: Each `DIR` (the demo corpus), `NAME=DIR`, or a YAML file of `NAME: DIR`, whose
            relative paths start at the file.
        known: Names of data sets and tasks.

    Raises:
        UserError: An unknown name, or a file that is no such YAML.
    """
    known = set(known)
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if argument.endswith((".yaml", ".yml")):
            found = _read_yaml(Path(argument))
        elif equals and "/" not in name:
            found = {name: Path(folder)}
        else:
            found = {DEMO: Path(argument)}
        if unknown := sorted(found.keys() - known):
            raise UserError(
                f"--data {argument}: no data set or task is named {unknown[0]!r}; "
                f"see `mllm eval list`"
            )
        folders |= found
    return DataPaths({DEMO: DEFAULT_DEMO_DIR} | folders, frozenset(folders))


def _read_yaml(path: Path) -> dict[str, Path]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--data {path}: cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(folder, str) for name, folder in content.items()
    ):
        raise UserError(f"--data {path}: expected lines such as `coco: /data/coco`")
    return {name: path.parent / folder for name, folder in content.items()}

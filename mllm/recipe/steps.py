"""A recipe file's keys, and the steps it spells: what each runs, reads and writes.

    out: runs/demo
    steps:
      - {name: tokenizer, mllm: [tokenizer, train, shards, --out, runs/demo/tokenizer],
         writes: runs/demo/tokenizer, done: tokenizer.model}
      - {name: pretrain, train: demo_cpu.yaml, overrides: [train.num_steps=20], num_ranks: 2}

A step is `mllm` (the words of a command) or `train` (a config, looked for beside the recipe). No
shell sees a word of it. Which steps a step needs follows from the paths it names: those that lie in
the folder of an earlier one.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.cli import VERBS
from mllm.config import (
    ALLOWED_ON_RESUME,
    Config,
    apply_override,
    parse,
    parse_config,
    parse_yaml,
    read_text,
)
from mllm.errors import UserError
from mllm.files import fingerprint
from mllm.stop import STOP_FILE

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


@dataclass(frozen=True)
class StepConfig:
    """One step, as the file says it."""

    name: str
    mllm: list[str | int | float] = field(default_factory=list)  # a command: what follows `mllm`
    train: str | None = None  # a training config, relative to the recipe file
    overrides: list[str] = field(default_factory=list)  # section.key=value, of `train`
    num_ranks: int = 1  # of `train`, on this machine
    # Start `train` by the launcher, with these words before its script: [--hostfile, HOSTS].
    deepspeed: list[str | int] = field(default_factory=list)
    writes: str | None = None  # the folder of what `mllm` makes; of `train` its run_dir
    done: str | None = None  # a file in there; a finished step without it runs again
    quiet: bool = False  # stdout is dropped

    def __post_init__(self) -> None:
        if bool(self.mllm) == (self.train is not None):
            raise ValueError(f"step {self.name!r} needs either `mllm` or `train`")
        if self.mllm:
            unfit = [k for k in ("overrides", "deepspeed") if getattr(self, k)]
            if unfit or self.num_ranks != 1:
                unfit = unfit or ["num_ranks"]
                raise ValueError(f"step {self.name!r}: {unfit[0]} goes with `train`")
            if self.writes is None:
                raise ValueError(f"step {self.name!r} needs `writes`, the folder that it makes")
            verb = str(self.mllm[0])
            if verb not in VERBS:
                near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(VERBS)}"
                raise ValueError(f"step {self.name!r}: no verb {verb!r} of mllm; {hint}")
        elif self.writes is not None:
            raise ValueError(f"step {self.name!r}: `train` writes its run_dir; leave out `writes`")
        if self.num_ranks < 1:
            raise ValueError(f"step {self.name!r}: num_ranks {self.num_ranks}; use 1 or more")
        if self.deepspeed and self.num_ranks != 1:
            raise ValueError(f"step {self.name!r}: give num_ranks or deepspeed, not both")


@dataclass(frozen=True)
class RecipeConfig:
    """A recipe file."""

    out: str  # folder of times.json, and of configs that were moved
    steps: list[StepConfig]
    stands_for: str | None = (
        None  # paths in this folder, in steps and configs, lie in `out` instead
    )

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if not names:
            raise ValueError("steps: a recipe has at least one")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two steps are named {name!r}")


@dataclass(frozen=True)
class Step:
    """One step, ready to run."""

    name: str
    argv: list[str]
    shown: list[str]  # what a user would type
    folder: Path  # everything that the step writes
    output: str  # in the folder; a finished step without it runs again
    fingerprint: str  # 16 hex over what decides its result, its inputs aside
    needs: tuple[str, ...]  # names of the steps whose folders it reads
    wants: tuple[str, ...] = ()  # paths that it reads and no step makes
    is_quiet: bool = False
    stop_file: Path | None = None  # asks it to stop, where a signal would orphan its processes
    moved_config: tuple[Path, str] | None = None  # written before the step runs


@dataclass(frozen=True)
class Recipe:
    out: Path
    steps: list[Step]


def read_recipe(path: Path) -> RecipeConfig:
    """
    Raises:
        UserError: no such file, no YAML, an unknown key, a step that says too little or too much.
    """
    return parse(RecipeConfig, parse_yaml(read_text(path), str(path), "out, steps"), str(path))


def resolve(config: RecipeConfig, path: Path, out: Path | None = None) -> Recipe:
    """The steps of the recipe at `path`, all their configs read and checked.

    Args:
        out: instead of the file's; every path in that folder moves along.

    Raises:
        UserError: a config is missing or wrong, an `init_from` that nothing makes, or folders that
            lie in each other the wrong way.
    """
    move = Move(config.stands_for or config.out, str(out or config.out))
    drafts = [_Draft.of(step, path, move) for step in config.steps]
    for number, draft in enumerate(drafts):
        _check_folder(draft, drafts[:number], path, move)
    _check_init_from(drafts, path)
    steps = [draft.step(drafts[:number]) for number, draft in enumerate(drafts)]
    return Recipe(Path(move.target), steps)


class Move:
    """Puts paths that lie in one folder into another, wherever they stand in a text."""

    def __init__(self, origin: str, target: str) -> None:
        self.target, self.is_needed = target, origin != target
        self._pattern = re.compile(rf"(?<![\w./~-]){re.escape(origin)}(?![\w.-])")

    def __call__(self, text: str) -> str:
        return self._pattern.sub(lambda _: self.target, text)


@dataclass(frozen=True)
class _Draft:
    """A step before it is known which others it needs."""

    name: str
    argv: list[str]
    shown: list[str]
    folder: Path
    output: str
    fingerprint: str
    reads: list[str]  # every text that may be a path
    is_quiet: bool
    inputs: tuple[str, ...] = ()  # those that are paths for certain
    init_from: str | None = None
    is_launched: bool = False
    moved_config: tuple[Path, str] | None = None

    @classmethod
    def of(cls, step: StepConfig, recipe: Path, move: Move) -> "_Draft":
        return cls._stage(step, recipe, move) if step.train else cls._command(step, move)

    @classmethod
    def _command(cls, step: StepConfig, move: Move) -> "_Draft":
        words = [move(str(word)) for word in step.mllm]
        files = {word: read_text(word) for word in words if word.endswith((".yaml", ".yml"))}
        return cls(
            name=step.name,
            argv=[sys.executable, "-m", "mllm.cli", *words],
            shown=["mllm", *words],
            folder=Path(move(step.writes or "")),
            output=step.done or ".",
            fingerprint=fingerprint([words, files]),
            reads=[part for word in words for part in (word, word.partition("=")[2])],
            is_quiet=step.quiet,
        )

    @classmethod
    def _stage(cls, step: StepConfig, recipe: Path, move: Move) -> "_Draft":
        path = recipe.parent / str(step.train)
        text, overrides = read_text(path), [move(word) for word in step.overrides]
        moved_config = None
        if move.is_needed and (moved := move(text)) != text:
            text, path = moved, Path(move.target) / path.name
            moved_config = (path, text)
        values = parse_yaml(text, str(path), "run_dir, tokenizer, data, model, train")
        for override in overrides:
            apply_override(values, override)
        config = parse_config(values, str(path))
        if step.deepspeed:
            words = [*map(str, step.deepspeed), _shown(TRAIN), _shown(path), *overrides]
            shown = ["deepspeed", *words]
            argv = [str(Path(sys.executable).with_name("deepspeed")), *words]
        else:
            ranks = ["--num-ranks", str(step.num_ranks)] if step.num_ranks > 1 else []
            shown = ["mllm", "train", _shown(path), *ranks, *overrides]
            argv = [sys.executable, "-m", "mllm.cli", *shown[1:]]
        return cls(
            name=step.name,
            argv=argv,
            shown=shown,
            folder=Path(config.run_dir),
            output=step.done or "checkpoints/latest",
            fingerprint=fingerprint(_lasting(config)),
            reads=list(_texts({**config.to_dict(), "run_dir": None})),
            is_quiet=step.quiet,
            inputs=tuple(_local_inputs(config)),
            init_from=config.init_from,
            is_launched=bool(step.deepspeed),
            moved_config=moved_config,
        )

    def step(self, earlier: Sequence["_Draft"]) -> Step:
        return Step(
            name=self.name,
            argv=self.argv,
            shown=self.shown,
            folder=self.folder,
            output=self.output,
            fingerprint=self.fingerprint,
            needs=tuple(
                d.name for d in earlier if any(_is_in(path, d.folder) for path in self.reads)
            ),
            wants=tuple(
                path for path in self.inputs if not any(_is_in(path, d.folder) for d in earlier)
            ),
            is_quiet=self.is_quiet,
            stop_file=self.folder / STOP_FILE if self.is_launched else None,
            moved_config=self.moved_config,
        )


def _check_folder(draft: _Draft, earlier: Sequence[_Draft], path: Path, move: Move) -> None:
    """A folder may be deleted to be made anew, so it holds nothing but the step's own."""
    for what, other in [
        *((f"step {d.name!r}", d.folder) for d in earlier),
        ("the recipe's times.json", Path(move.target)),
        ("the recipe", path),
        ("the working directory", Path.cwd()),
    ]:
        if _is_in(other, draft.folder):
            raise UserError(
                f"{path}: step {draft.name!r} writes {draft.folder}, where {what} lies too "
                f"({other}); give it a folder of its own"
            )


def _check_init_from(drafts: Sequence[_Draft], path: Path) -> None:
    """Every `init_from` is made by an earlier step, or is there."""
    makers = {
        d.name: next((m for m in drafts if d.init_from and _is_in(d.init_from, m.folder)), None)
        for d in drafts
    }
    done: set[str] = set()
    for draft in drafts:
        maker = makers[draft.name]
        if maker is None:
            if draft.init_from and not Path(draft.init_from).exists():
                raise UserError(
                    f"{path}: step {draft.name!r} begins from {draft.init_from}, which is not "
                    "there and which no step makes; mend init_from, or add that stage before it"
                )
        elif maker.name not in done:
            chain = [draft.name]
            while (next_maker := makers[chain[-1]]) and next_maker.name not in chain:
                chain.append(next_maker.name)
            if makers[chain[-1]]:
                shown = " from ".join(repr(name) for name in [*chain, draft.name])
                raise UserError(f"{path}: init_from goes round in a circle: {shown}")
            raise UserError(
                f"{path}: step {draft.name!r} begins from {draft.init_from}, which the later step "
                f"{maker.name!r} makes; put that one first"
            )
        done.add(draft.name)


def _is_in(path: str | Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _shown(path: Path) -> str:
    """As one would type it here."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _lasting(config: Config) -> dict[str, Any]:
    """The config without what a run may be continued with as a matter of course.

    What it begins from stays in: such a run may be moved, but a finished one is of those inputs.
    """
    values = config.to_dict()
    for key in ALLOWED_ON_RESUME - {"tokenizer", "init_from", "vision_weights"}:
        *sections, name = key.split(".")
        owner = values
        for section in sections:
            owner = owner[section]
        owner.pop(name)
    return values


def _local_inputs(config: Config) -> Iterator[str]:
    yield config.tokenizer
    if config.vision_weights:
        yield config.vision_weights
    for source in (*config.data.mixture, *config.data.validation):
        if "://" not in source.path:
            yield source.path


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)

"""A run's folder: effective config, what may change when it goes on, ledger."""

import dataclasses
import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mllm import dist
from mllm.config import (
    ALLOWED_ON_RESUME,
    WARNED_ON_RESUME,
    Config,
    Precision,
    SourceConfig,
    changed_keys,
    parse_config,
)
from mllm.engine_config import check_attention_backend
from mllm.errors import UserError
from mllm.files import append_line, write_aside
from mllm.rollback import with_rollbacks
from mllm.stream.state import StreamState

SHARED_SECONDS = 30.0  # NFS may show a folder as it was a while ago


def continue_folder(run_dir: Path, config: Config, precision: Precision) -> Config:
    """Writes the effective config, or checks that it may continue the one that stands there.

    A run keeps the precision it began with, so `auto` means the same on another machine.

    Raises:
        UserError: a key changed that would make the rest another run; this machine cannot run it.
    """
    path = run_dir / "config.yaml"
    before = None
    if path.exists():
        before = parse_config(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        if config.train.precision == "auto":
            precision = before.train.precision
    check_attention_backend(config, precision)
    config = with_rollbacks(config, run_dir)
    train = dataclasses.replace(config.train, precision=precision)
    config = dataclasses.replace(config, train=train)
    has_begun = any((run_dir / "checkpoints").glob("step-*"))
    if before is not None and has_begun:
        for key in changed_keys(before.to_dict(), config.to_dict()):
            if key in WARNED_ON_RESUME:
                dist.say(f"mllm: {key} changed since {path}: {WARNED_ON_RESUME[key]}")
            elif key not in ALLOWED_ON_RESUME:
                raise UserError(
                    f"{key} differs from {path}, which this run continues; "
                    "take the change back or choose another run_dir"
                )
    if dist.rank() == 0:
        try:
            with write_aside(path) as file:
                yaml.safe_dump(_plain(config.to_dict()), file, sort_keys=False)
        except OSError as error:
            raise UserError(f"run_dir {run_dir}: {error.strerror}; choose another one") from None
    dist.barrier()
    _check_shared(path)
    return config


def _check_shared(path: Path) -> None:
    """Whether all ranks see what rank 0 wrote. All ranks call it.

    Raises:
        UserError: a node has a folder of its own there, and checkpoints would be of a part.
    """
    expected = dist.broadcast_object(path.read_bytes() if dist.rank() == 0 else None)
    end, problem = time.monotonic() + SHARED_SECONDS, None
    while True:
        with suppress(OSError):
            if path.read_bytes() == expected:
                break
        if time.monotonic() > end:
            problem = (
                f"run_dir {path.parent}: {socket.gethostname()} does not see what rank 0 wrote "
                "there; name a folder that all nodes share"
            )
            break
        time.sleep(0.2)
    if problem := dist.first_problem(problem):
        raise UserError(problem)


def read_stream_state(run_dir: Path) -> StreamState:
    """What `stream.json` of a run says. UserError where it is missing or damaged."""
    path = run_dir / "stream.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); without it nobody knows which data the run has "
            "seen: bring it back, or choose another run_dir"
        ) from None
    return StreamState.from_json(value, str(path))


def with_all_sources(config: Config, state: StreamState) -> Config:
    """The config with every source that the run has ever had, in the order of its records."""
    known = {source.name: source for source in config.data.mixture}
    sources = {source.name: source for segment in state.segments for source in segment.sources}
    mixture = [
        SourceConfig(
            name,
            source.path,
            float(source.weight),
            keep_colours=known[name].keep_colours if name in known else False,
            join_documents=float(source.join_documents or 0),
        )
        for name, source in sources.items()
    ]
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=mixture))


def _plain(value: Any) -> Any:
    """Tuples become lists: YAML's safe form has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Ledger:
    """`ledger.jsonl`: every masked sample and skipped step, with its reason. All ranks append."""

    def __init__(self, run_dir: Path):
        self._path = run_dir / "ledger.jsonl"
        self.num_bad_samples = 0

    def write(self, entry: dict[str, Any]) -> None:
        append_line(self._path, json.dumps({**entry, "rank": dist.rank()}, ensure_ascii=False))
        self.num_bad_samples += "key" in entry

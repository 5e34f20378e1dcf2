"""Reading what the page is made of. A missing file is None (the page says so); a broken one is a
`UserError` that names file and line."""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mllm.errors import UserError


@dataclass(frozen=True)
class Run:
    """One run folder, perhaps still being written."""

    label: str
    color: int  # its place among the runs of the page: one colour in every chart
    path: Path
    config: dict[str, Any] | None
    steps: list[dict[str, Any]]  # one object per training step
    validations: list[dict[str, Any]]  # lines with "validation"
    ledger: list[dict[str, Any]]  # masked samples and skipped steps
    generations: list[dict[str, Any]]  # completions of held-out prompts, one object per validation
    stream: dict[str, Any] | None

    @property
    def is_vision(self) -> bool:
        """The contrastive stage: it has accuracies where the others have losses by source."""
        if self.setting("stage") is not None:
            return bool(self.setting("stage") == "vision")
        return any("accuracy" in line for line in self.steps)

    @property
    def last_step(self) -> int | None:
        return self.steps[-1]["step"] if self.steps else None

    @property
    def seconds(self) -> float:
        """Time spent in training steps and in waiting for their data."""
        return sum(
            line.get("step_seconds", 0.0) + line.get("data_wait_seconds", 0.0)
            for line in self.steps
        )

    @property
    def tokens_by_source(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for line in self.steps:
            total.update(line.get("tokens_by_source", {}))
        return dict(total)

    def setting(self, key: str) -> Any:
        """The value of a dotted key of config.yaml, None where it or the file is missing."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(part)
        return value


@dataclass(frozen=True)
class Export:
    path: Path
    parameters: dict[str, int]  # part of the model (first name of the tensor): parameter count
    num_bytes: int


@dataclass(frozen=True)
class Times:
    steps: list[tuple[str, float]]  # (step, seconds)
    probes: dict[str, float]


def read_json(path: Path) -> Any:
    """Parsed JSON, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable JSON ({error}); write it again") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file; the last line is left out while it is still being written."""
    if not path.exists():
        return []
    *whole, _unfinished = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(whole, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); remove it") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is no JSON object; remove it")
        objects.append(value)
    return objects


def read_metrics(path: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(path)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line.get("step"), int):
            raise UserError(f"{path}: line {number} has no integer `step`; remove it")
    return lines


def read_generations(path: Path) -> list[dict[str, Any]]:
    lines = read_metrics(path)
    for number, line in enumerate(lines, start=1):
        samples = line.get("samples")
        if not isinstance(samples, list) or not all(isinstance(s, dict) for s in samples):
            raise UserError(f"{path}: line {number} has no list of `samples`; remove it")
    return lines


def labels(paths: list[Path]) -> list[str]:
    """The shortest tails of the paths that tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole), default=0) + 1):
        tails = ["/".join(parts[-length:]) for parts in whole]
        if len(set(tails)) == len(set(whole)):
            return tails
    return []


def read_runs(paths: list[Path]) -> list[Run]:
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder; name the run_dir of a training config")
    named = zip(paths, labels(paths), strict=True)
    return [read_run(path, label, color) for color, (path, label) in enumerate(named)]


def read_run(path: Path, label: str, color: int) -> Run:
    lines = read_metrics(path / "metrics.jsonl")
    return Run(
        label=label,
        color=color,
        path=path,
        config=read_config(path / "config.yaml"),
        steps=[line for line in lines if "validation" not in line],
        validations=[line for line in lines if "validation" in line],
        ledger=read_json_lines(path / "ledger.jsonl"),
        generations=read_generations(path / "generations.jsonl"),
        stream=read_json(path / "stream.json"),
    )


def read_config(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({reason}); write it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a mapping of settings; write it again")
    return config


def read_results(eval_dir: Path) -> dict[str, Any] | None:
    """results.json with every number that the page computes with checked to be one."""
    path = eval_dir / "results.json"
    results = read_json(path)
    if results is None:
        return None
    if not isinstance(results, dict) or not isinstance(results.get("cells"), list):
        raise UserError(f"{path}: no list of `cells`; run `mllm eval` again")
    for index, cell in enumerate(results["cells"]):
        for key in ("suite", "num_shots", "score", "n"):
            if key not in cell:
                raise UserError(f"{path}: cells[{index}] has no `{key}`; run `mllm eval` again")
        controls = {"blind": cell.get("blind"), **cell.get("controls", {})}
        numbers = {
            **{key: cell.get(key) for key in ("num_shots", "score", "se", "n", "chance")},
            "majority": cell.get("majority"),
            **{f"baselines.{key}": value for key, value in cell.get("baselines", {}).items()},
            **{
                f"{name}.{key}": (found or {}).get(key)
                for name, found in controls.items()
                for key in ("score", "se", "n")
            },
        }
        for key, value in numbers.items():
            if value is not None and not isinstance(value, int | float):
                raise UserError(f"{path}: cells[{index}].{key} is not a number: {value!r}")
    return results


def read_times(path: Path) -> Times:
    """`[{"step": name, "seconds": s}, ..., {"probe_bf16_gflops": x, ...}]`."""
    if not path.exists():
        raise UserError(f"{path}: no such file; leave out --times or write it first")
    items = read_json(path)
    try:
        steps = [(str(item["step"]), float(item["seconds"])) for item in items if "step" in item]
        probes = {
            str(key): float(value)
            for item in items
            if "step" not in item
            for key, value in item.items()
        }
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f'{path}: not a list of {{"step": name, "seconds": s}} and probes; write it again'
        ) from error
    return Times(steps, probes)


def read_export(path: Path) -> Export | None:
    """Sizes of the exported model, from the headers of its safetensors files alone."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        return None
    parameters: Counter[str] = Counter()
    for file in files:
        for name, tensor in safetensors_header(file).items():
            parts = [part for part in name.split(".") if part != "model"]
            parameters[parts[0]] += math.prod(tensor["shape"])
    return Export(path, dict(parameters), sum(file.stat().st_size for file in files))


def safetensors_header(path: Path) -> dict[str, Any]:
    """Tensor name: {"dtype", "shape", "data_offsets"}; the tensors themselves are not read."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
    except (ValueError, struct.error) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); export again") from error
    header.pop("__metadata__", None)
    return dict(header)

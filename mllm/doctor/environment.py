"""What a report about this machine must say: versions, devices, precision, disk."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from mllm.engine_config import resolve_precision

OPTIONAL = ("flash-attn", "xformers")


def describe(place: Path) -> dict[str, str]:
    """Name and value of each line.

    Args:
        place: a folder on the disk whose free space is told.
    """
    lines = {"python": f"{platform.python_version()} on {platform.system()} {platform.machine()}"}
    wanted = [Requirement(text) for text in requires("mllm") or []]
    pins = {r.name: r.specifier for r in wanted if r.marker is None}
    for name in ("torch", "deepspeed", "transformers"):
        found = version(name)
        is_pinned = pins[name].contains(found)
        lines[name] = found if is_pinned else f"{found}, not {pins[name]} as pinned"
    for name in OPTIONAL:
        try:
            lines[name] = version(name)
        except PackageNotFoundError:
            lines[name] = "not installed"
    lines["CPU"] = f"{len(os.sched_getaffinity(0))} cores"
    lines["GPU"] = "; ".join(_gpus()) or "none"
    automatic = resolve_precision("auto")
    lines["bf16"] = "native" if _has_native_bf16() else "emulated, slower than fp32"
    lines["train.precision auto"] = automatic
    lines["free disk"] = f"{shutil.disk_usage(place).free / 2**30:.1f} GiB at {place}"
    return lines


def _gpus() -> list[str]:
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found]


def _has_native_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return resolve_precision("auto") == "bf16"

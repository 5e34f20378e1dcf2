"""The files of a checkpoint: whole or not there. Written aside, hashed, fsynced, renamed, verified.

Each rank writes a part and, last, a small file that says what is in it. Rank 0 makes the manifest
of these; a folder without it is no checkpoint.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mllm.files import (
    HashedFile,
    fsync_dir,
    in_threads,
    json_text,
    sha256_file,
    write_aside,
    write_hashed,
    write_json,
)

MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS = "model.safetensors"
AVERAGE = "average.safetensors"
LATEST = "latest"
THREADS = 4  # a rank's, each with one file: hashing is what takes the time

Entry = dict[str, Any]  # {"bytes": int, "sha256": str}
Manifest = dict[str, Entry]  # by name in the folder
Fill = Callable[[HashedFile], object]  # writes a file's content


# ------------------------------------------------------------------------------------ content
def bytes_file(data: bytes) -> Fill:
    return lambda file: file.write(data)


def json_file(value: Any) -> Fill:
    return bytes_file((json_text(value, indent=1) + "\n").encode())


def torch_file(value: Any) -> Fill:
    return lambda file: torch.save(value, file)


def safetensors_file(tensors: dict[str, torch.Tensor]) -> Fill:
    """What `safetensors` would write, through a file that hashes.

    Args:
        tensors: float32, on the CPU.
    """
    header, start = {}, 0
    for name, tensor in sorted(tensors.items()):
        assert tensor.dtype == torch.float32, name
        offsets = [start, start + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8

    def fill(file: HashedFile) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy())

    return fill


# ------------------------------------------------------------------------------------ writing
def write_part(folder: Path, rank: int, files: dict[str, Fill]) -> None:
    """Writes a rank's files and, once they are on disk, what tells rank 0 so.

    Raises:
        OSError: the disk would not take them; those written are removed, which makes room.
    """
    try:
        entries = in_threads(
            lambda item: write_hashed(folder / item[0], item[1]), files.items(), THREADS
        )
        write_json(_part_path(folder, rank), dict(zip(files, entries, strict=True)))
    except BaseException:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise


def find_parts(folder: Path, world_size: int) -> Manifest | None:
    """What all ranks have written; None: some have not finished."""
    paths = [_part_path(folder, rank) for rank in range(world_size)]
    if not all(path.exists() for path in paths):
        return None
    manifest: Manifest = {}
    for path in paths:
        manifest |= json.loads(path.read_text())
    return manifest


def write_manifest(folder: Path, world_size: int, manifest: Manifest) -> Manifest:
    """Makes a whole checkpoint of the ranks' parts; gives back the manifest."""
    for rank in range(world_size):
        _part_path(folder, rank).unlink()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            fsync_dir(path)
        elif name not in manifest:  # DeepSpeed's copies of states that lie on NVMe
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            manifest[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest = dict(sorted(manifest.items()))
    write_json(folder / MANIFEST, manifest)
    return manifest


def rename(folder: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)  # one that did not verify and was passed over
    os.rename(folder, final)
    fsync_dir(final.parent)


def move_latest(final: Path) -> None:
    with write_aside(final.parent / LATEST) as file:
        file.write(final.name + "\n")


def prune(newest: Path, keep: int) -> None:
    """Removes the oldest checkpoints up to the one just written, which stays."""
    earlier = [path for path in checkpoints(newest.parent) if path.name < newest.name]
    for old in earlier[: max(0, len(earlier) + 1 - max(1, keep))]:
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """What a killed run left half-written. Nobody else may be writing there."""
    for path in [*folder.glob(".tmp-step-*"), *folder.glob(f"{LATEST}.tmp-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _part_path(folder: Path, rank: int) -> Path:
    return folder / f"part-{rank:05d}.json"


# ------------------------------------------------------------------------------------ reading
def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def problem_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file has its size and hash."""
    try:
        manifest = read_manifest((checkpoint / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    problems = in_threads(
        lambda item: _problem_of_file(checkpoint, *item), manifest.items(), THREADS
    )
    return next((problem for problem in problems if problem), None)


def read_manifest(data: bytes) -> Manifest:
    """A manifest's content. ValueError where it is none."""
    manifest = json.loads(data)
    if not isinstance(manifest, dict) or not {STATE, WEIGHTS} <= manifest.keys():
        raise ValueError(f"names no {STATE} and {WEIGHTS}")
    for name in manifest:
        if name.startswith("/") or ".." in Path(name).parts:
            raise ValueError(f"{name!r} lies outside of the checkpoint")
    for name, entry in manifest.items():
        known = isinstance(entry, dict) and {key: type(value) for key, value in entry.items()}
        if known != {"bytes": int, "sha256": str}:
            raise ValueError(f"{name!r} has no size and hash")
    return manifest


def _problem_of_file(checkpoint: Path, name: str, expected: Entry) -> str | None:
    path = checkpoint / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
    if sha256_file(path) != expected["sha256"]:
        return f"{name} has another SHA-256 than its manifest says"
    return None

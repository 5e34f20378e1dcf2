"""An export folder as a whole: written aside and renamed, and what identifies its answers."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm.errors import UserError
from mllm.files import fingerprint, fsync_dir, sha256_file

MARKER = "export.json"  # written last; an existing folder is replaced only if it has one

# What decides an answer. The rest of an export is for people.
FINGERPRINTED = ("*.safetensors", "config.json", "processor_config.json", "tokenizer*")


@contextmanager
def export_folder(out_dir: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside `out_dir`, which takes its place once the body has ended.

    If the body raises, the folder is removed and `out_dir` stands as it was.

    Raises:
        UserError: `out_dir` exists and is no export.
    """
    out_dir = Path(out_dir)
    if out_dir.name in ("", ".."):
        raise UserError(f"--out {out_dir} cannot be replaced as a whole; name a new folder")
    if out_dir.is_file():
        raise UserError(f"--out {out_dir} is a file; name a new folder")
    if out_dir.exists() and not (out_dir / MARKER).is_file() and any(out_dir.iterdir()):
        raise UserError(f"--out {out_dir} exists and is no export; name a new folder")
    aside = out_dir.with_name(f"{out_dir.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        replace_folder(aside, out_dir)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def replace_folder(aside: Path, out_dir: Path) -> None:
    """Puts a finished folder in the place of `out_dir`, everything on disk first."""
    for path in aside.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    fsync_dir(aside)
    old = out_dir.with_name(f"{out_dir.name}.old-{os.getpid()}")
    if out_dir.exists():
        os.rename(out_dir, old)
    os.rename(aside, out_dir)
    fsync_dir(out_dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def model_fingerprint(model_dir: str | Path) -> str:
    """16 hex digits over weights, configuration, processor and tokenizer of an export."""
    model_dir = Path(model_dir)
    files = sorted({path for pattern in FINGERPRINTED for path in model_dir.glob(pattern)})
    return fingerprint({path.name: sha256_file(path) for path in files})

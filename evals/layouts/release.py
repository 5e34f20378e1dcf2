"""What results say about the files that a data set was read from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mllm.files import fingerprint


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Over the content of a data set's own files."""
    return fingerprint([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])


def listing_fingerprint(folder: Path, paths: Iterable[Path]) -> str:
    """Over names and sizes below `folder`: pictures are too many to be read for it."""
    return fingerprint(
        [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in sorted(paths)]
    )


def lacking(size: int | None, found: int) -> dict[str, int]:
    """`Task.problems` of a file that has fewer questions than its release."""
    if size is None or found >= size:
        return {}
    return {f"of the release's {size:,} questions, which are not in the file": size - found}

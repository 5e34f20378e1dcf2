"""Folders of WebDataset tars, as img2dataset writes them, with its statistics.

They are a corpus as they stand: an import indexes them in place. They are read sample by sample,
and written anew, only when filters or a search for duplicates are asked for.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from corpora.document import Document, from_members
from corpora.pipeline.readers.base import Format, ReadLog
from corpora.pipeline.units import Part, files_under
from corpora.storage import list_shards, open_shard
from corpora.tar import BrokenTar, read_samples
from mllm.errors import BadSample, UserError


class Img2dataset(Format):
    name = "img2dataset"
    summary = "img2dataset's tars (or other WebDataset tars): indexed in place, nothing rewritten"

    def claims(self, source: Path) -> bool:
        return source.is_dir() and any(source.glob("*.tar"))

    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        for name in list_shards(source):
            path = source / name
            yield Part(str(path), path.stat().st_size, root=str(source))

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        path = Path(part.path)
        try:
            for sample in read_samples(open_shard(path.parent, path.name)):
                try:
                    yield from_members("", sample.members)
                except BadSample as error:
                    log.drop("neither picture nor text", f"{path.name} {sample.key}", str(error))
        except BrokenTar as error:
            log.breaks_off(part.path, error)


@dataclass(frozen=True)
class Downloads:
    """img2dataset's own account of what it downloaded."""

    asked: int
    succeeded: int
    statuses: dict[str, int]  # "success" or what failed: count, the most frequent first
    seconds: float  # summed over its shards
    num_files: int  # *_stats.json


def read_downloads(folder: Path) -> Downloads | None:
    """All `*_stats.json` of a folder together; None when there are none.

    Raises:
        UserError: One of them is cut.
    """
    asked = succeeded = num_files = 0
    statuses: Counter[str] = Counter()
    seconds = 0.0
    for path in files_under(folder, ("_stats.json",)):
        try:
            stats = json.loads(path.read_bytes())
            asked += stats["count"]
            succeeded += stats["successes"]
            statuses.update(stats["status_dict"])
            seconds += stats["end_time"] - stats["start_time"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not img2dataset's statistics ({error!r}); move it away or run "
                "img2dataset again"
            ) from None
        num_files += 1
    if not num_files:
        return None
    return Downloads(asked, succeeded, dict(statuses.most_common()), seconds, num_files)

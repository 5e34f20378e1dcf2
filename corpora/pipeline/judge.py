"""A pipeline step that drops records, counts each drop with its reason and keeps a few examples."""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document as Record
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from mllm.files import write_json

EXAMPLES_PER_REASON = 5
EXCERPT = 200  # characters


class Judge(PipelineStep):
    """Keeps or drops each record. Subclasses say why in a few words.

    After a unit, `DROPS_DIR/STEP/UNIT.json` holds {"kept", "dropped": {reason: count}, "edited":
    {what: count}, "examples": {reason: [{"id", "excerpt"}]}}, from which the import report is made.
    """

    type = "FILTER"

    def __init__(self, drops_dir: str | Path) -> None:
        super().__init__()
        self.drops_dir = Path(drops_dir)
        self.edited = Counter[str]()  # what `judge` changed in records: counted there

    @abstractmethod
    def judge(self, record: Record) -> str | None:
        """The reason to drop the record, or None to keep it. May rewrite the record."""

    def example(self, record: Record) -> dict[str, Any]:
        """What the report shows of a dropped record; a step may add keys of its own."""
        return {"id": record.id, "excerpt": record.text[:EXCERPT]}

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # type: ignore[override]
        kept, dropped = 0, Counter[str]()
        self.edited = Counter()
        examples: dict[str, list[dict[str, Any]]] = {}
        for record in data or ():
            reason = self.judge(record)
            if reason is None:
                kept += 1
                self.stat_update("forwarded")
                yield record
                continue
            self.stat_update("dropped", f"dropped_{reason}")
            dropped[reason] += 1
            shown = examples.setdefault(reason, [])
            if len(shown) < EXAMPLES_PER_REASON:
                shown.append(self.example(record))
        path = self.drops_dir / self.name / f"{rank:06d}.json"
        counts = {"kept": kept, "dropped": dict(dropped), "edited": dict(self.edited)}
        write_json(path, counts | {"examples": examples})


def utf8_safe(text: str) -> str:
    """`text` with what UTF-8 cannot spell escaped: names of files may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_drops(path: Path) -> dict[str, Any]:
    """One unit's file of one step."""
    return json.loads(path.read_text(encoding="utf-8"))

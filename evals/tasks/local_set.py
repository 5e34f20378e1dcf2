"""What the tasks on the demo corpus have in common: where their queries and exemplars lie."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from corpora.document import Document
from evals.api import Exemplar, Support, Task
from evals.options import TaskOptions
from evals.tasks.sources import Source
from mllm.errors import UserError

SPLITS = ("development", "final", "new_concepts")


class LocalSet(Task):
    """Queries of `eval/{set_name}_{split}`, exemplars of `eval/{set_name}_support`.

    Only naming has concepts of its own that training never saw: `--split new_concepts` is elsewhere
    what `final` is.
    """

    set_name: str
    takes_shots = True
    parts: Mapping[str, str] = {  # --split, and the end of the folder's name
        "development": "development",
        "final": "test",
        "new_concepts": "test",
    }

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.data_dir = data_dir
        self.split = self.parts[options.split]
        self.corpus_name = f"{self.set_name}_{self.split}"
        self.source = Source(data_dir, f"eval/{self.corpus_name}")

    @cached_property
    def support_source(self) -> Source:
        return Source(self.data_dir, f"eval/{self.set_name}_support")

    @property
    def data_fingerprint(self) -> str:
        return self.source.corpus.fingerprint

    def ids(self) -> list[str]:
        return self.source.ids()

    def support(self) -> Support:
        if not self.takes_shots:
            raise UserError(f"{self.name} has no shots; use --shots 0")
        return self.support_source.support(self.show)

    def show(self, document: Document) -> Exemplar:
        """A sample of the support set with its answer."""
        raise NotImplementedError

"""5-way naming: which of five names fits a picture whose artwork was never trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, TextSegment
from evals.api import Baselines, Exemplar, Model, Query
from evals.options import TaskOptions
from evals.shots import draw_order
from evals.tasks.local_set import SPLITS, LocalSet
from evals.tasks.neighbour import neighbour_baselines
from evals.tasks.ranking import RankTask

PROMPT = "An image of"


class Naming(LocalSet, RankTask):
    """Ranks ` {answer}` against four distractors of the same Unicode group after `An image of`.

    The distractors lie in the corpus, so that model, pixel neighbour and control share them.

    The headline norm is the summed log-likelihood: a name is a closed phrase, and the mean per
    token favours long names whose later tokens follow from the first ("face with ...").
    Chosen on the development half, where it gave 64.6 % and the mean per token 58.2 %; the other
    norms stand beside it.
    """

    name = set_name = "naming"
    parts: Mapping[str, str] = {split: split for split in SPLITS}
    norm = "sum"
    prompt = PROMPT

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.use_norm(options.norm)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "shot": f"{self.prompt} {{answer}}.", "norm": self.norm}

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        answer, distractors = self.source.meta(document, "answer", "distractors")
        names = [answer, *distractors]
        # A fixed order by id: with the gold name always first, ties would count as right.
        candidates = tuple(names[i] for i in draw_order(f"candidates\n{query_id}", len(names)))
        segments = (ImageSegment(document.images[0]), TextSegment(self.prompt))
        return Query(query_id, segments, answer, document.meta | {"candidates": candidates})

    def show(self, document: Document) -> Exemplar:
        (answer,) = self.support_source.meta(document, "answer")
        question = (ImageSegment(document.images[0]), TextSegment(self.prompt))
        return Exemplar(document.key, question, f" {answer}.")

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        return neighbour_baselines(queries, self.support_source.dir, model)

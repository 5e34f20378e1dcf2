"""In-context learning: which label a picture has, when the shots alone say what labels mean."""

from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment
from corpora.incontext.episodes import NUM_WAYS
from evals.api import Exemplar, Prompt, Query, RankRequest, Request, Support
from evals.controls import redealt
from evals.options import TaskOptions
from evals.tasks.ranking import RankTask
from evals.tasks.sources import Source


class InContext(RankTask):
    """Ranks the labels of a trial for one more picture of one of its classes.

    Classes and label words are those of no training episode, and every trial deals its labels
    anew: without shots, nothing can be known. A trial's shots are its own support set, in rounds of
    one exemplar a class. A label follows its picture at once, as in training: no prompt between.

    The headline norm is the summed log-likelihood: all labels have as many letters.
    """

    name = "incontext"
    split = "test"
    corpus_name = "eval/incontext_test"
    norm = "sum"
    # What the words are worth after nothing at all says nothing about a label.
    is_conditioned = False

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.use_norm(options.norm)
        self.source = Source(data_dir, self.corpus_name, "incontext")
        self.support_source = Source(data_dir, "eval/incontext_support", "incontext")

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": "", "shot": "{label}", "norm": self.norm}

    @property
    def data_fingerprint(self) -> str:
        return self.source.corpus.fingerprint

    def ids(self) -> list[str]:
        return self.source.ids()

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        answer, labels, code = self.source.meta(document, "answer", "labels", "class")
        meta = {"candidates": tuple(labels), "class": code}
        return Query(query_id, (ImageSegment(document.images[0]),), answer, meta)

    def request(self, prompt: Prompt) -> Request:
        return RankRequest(prompt, prompt.query.meta["candidates"], self.is_conditioned)

    def gold_class(self, query: Query) -> str:
        return str(query.meta["class"])

    def support(self) -> Support:
        whole = self.support_source.support(self._show)

        def own(query: Query) -> Support:
            return replace(whole, ids=self._shots_of_trial[query.id], round_size=NUM_WAYS)

        return replace(whole, own=own)

    @cached_property
    def _shots_of_trial(self) -> dict[str, tuple[str, ...]]:
        """Exemplar ids by trial: a shot's key is its trial's with a number behind."""
        shots = defaultdict(list)
        for key in sorted(self.support_source.ids()):
            shots[key.rpartition("-")[0]].append(key)
        return {trial: tuple(keys) for trial, keys in shots.items()}

    def _show(self, document: Document) -> Exemplar:
        (answer,) = self.support_source.meta(document, "answer")
        return Exemplar(document.key, (ImageSegment(document.images[0]),), answer)

    def permuted(self, prompt: Prompt, key: str) -> Prompt:
        return redealt(prompt, key)

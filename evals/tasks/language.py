"""StoryCloze, HellaSwag, Winograd, Winogrande, PIQA, BoolQ, CB and COPA, by log-likelihood."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.document import Segment, TextSegment
from evals.api import Exemplar, Measured, Prompt, Query, Support
from evals.layouts.language import LAYOUTS, Sample, load
from evals.layouts.release import files_fingerprint, lacking
from evals.options import TaskOptions
from evals.tasks.language_prompts import Asked, ask
from evals.tasks.ranking import RankTask, VariantTask


class _Language(RankTask):
    """What both kinds of scoring share: files, shots, styles.

    `kosmos` has `</s>` between shots and the mean log-likelihood of a token as its headline,
    `lm_eval` a blank line and the sum, which that harness calls `acc`.
    """

    has_images = False
    split = "evaluation"
    shared_candidates = False  # the same ones for every question

    def __init__(self, name: str, folder: Path, options: TaskOptions) -> None:
        self.name = self.corpus_name = name
        self.layout = LAYOUTS[name]
        self.folder_path = folder
        self.style = options.language_style
        if self.style == "lm_eval":
            self.separator, self.norm = "blank_line", "sum"
        self.use_norm(options.norm)
        samples, self.files = load(self.layout, folder, "evaluation")
        self.samples = {sample.id: sample for sample in samples}

    @property
    def settings(self) -> dict[str, Any]:
        return {"style": self.style, "norm": self.norm}

    @property
    def data_fingerprint(self) -> str:
        return files_fingerprint(self.files)

    def ids(self) -> list[str]:
        return list(self.samples)

    def problems(self) -> dict[str, int]:
        return lacking(self.layout.size, len(self.samples))

    def _asked(self, sample: Sample) -> Asked:
        return ask(sample, self.style)

    @cached_property
    def _training(self) -> tuple[dict[str, Sample], list[Path]]:
        samples, files = load(self.layout, self.folder_path, "training")
        return {sample.id: sample for sample in samples}, files

    def support(self) -> Support:
        samples, files = self._training
        return Support(
            tuple(sorted(samples)),
            files_fingerprint(files),
            lambda name: self._exemplar(name, self._asked(samples[name]), None),
            lambda name: str(samples[name].label),
        )

    def _exemplar(self, name: str, asked: Asked, place: int | None) -> Exemplar:
        """A shot that shows the candidate at `place`, or the right one."""
        shown = asked.candidates[asked.gold if place is None else place]
        if asked.rest is None:
            return Exemplar(name, _text(asked.prompt), f" {shown}")
        return Exemplar(name, _text(asked.prompt), f"{shown} {asked.rest}")

    def permuted(self, prompt: Prompt, key: str) -> Prompt:
        """Where every question has candidates of its own, each shot shows one of those, by hash:
        the answer to another question would not even be an answer."""
        if self.shared_candidates:
            return super().permuted(prompt, key)
        samples, _ = self._training
        shots = []
        for place, shot in enumerate(prompt.shots):
            asked = self._asked(samples[shot.id])
            digest = hashlib.sha256(f"{key}\npermuted\n{place}".encode()).digest()
            shown = int.from_bytes(digest[:8], "big") % len(asked.candidates)
            shots.append(self._exemplar(shot.id, asked, shown))
        return Prompt(tuple(shots), prompt.query, prompt.separator)


class Language(_Language):
    """Ranks the candidates themselves."""

    def query(self, query_id: str) -> Query:
        asked = self._asked(self.samples[query_id])
        gold = asked.candidates[asked.gold]
        return Query(query_id, _text(asked.prompt), gold, {"candidates": asked.candidates})


class PartialLanguage(VariantTask, _Language):
    """Partial scoring: a candidate goes into the sentence and the sentence's rest is scored.

    The rest stands after one space, as in lm_eval, also where it begins with an apostrophe: without
    a space its letters could melt into one piece with the candidate's.
    """

    def query(self, query_id: str) -> Query:
        asked = self._asked(self.samples[query_id])
        meta = {
            "candidates": asked.candidates,
            "endings": tuple(_text(candidate) for candidate in asked.candidates),
            "scored": f" {asked.rest}",
        }
        return Query(query_id, _text(asked.prompt), asked.candidates[asked.gold], meta)


class SharedLanguage(Language):
    """Candidates that are the same for every question."""

    shared_candidates = True


class CommitmentBankTask(SharedLanguage):
    """CB, whose three classes are unequal: macro-F1 stands beside accuracy."""

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        measured = super().measure(rows)
        measured.extra["macro_f1"] = round(100 * macro_f1(rows, ("True", "False", "Neither")), 4)
        return measured


def _text(text: str) -> tuple[Segment, ...]:
    return (TextSegment(text),) if text else ()


def macro_f1(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> float:
    """Mean F1 over classes, 0 for one that neither occurs nor is answered."""
    scores = []
    for name in classes:
        hits = sum(row["answer"] == name == row["gold"] for row in rows)
        found = sum(row["answer"] == name for row in rows) + sum(r["gold"] == name for r in rows)
        scores.append(2 * hits / found if found else 0.0)
    return sum(scores) / len(scores)


KINDS: dict[str, type[_Language]] = {
    "winograd": PartialLanguage,
    "winogrande": PartialLanguage,
    "boolq": SharedLanguage,
    "cb": CommitmentBankTask,
}


def make_language(name: str, folder: Path, options: TaskOptions) -> _Language:
    return KINDS.get(name, Language)(name, folder, options)

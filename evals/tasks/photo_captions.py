"""Captions of photographs: Karpathy's test parts of COCO and Flickr30k."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.api import Baselines, Exemplar, Model, Query
from evals.captions import one_line, score_captions
from evals.layouts.captions import CaptionRecord, load_coco, load_flickr30k
from evals.layouts.images import Part
from evals.official_scores import dealt_round
from evals.options import TaskOptions
from evals.tasks.captioning import CaptionTask, score_texts
from evals.tasks.downloaded import Styled
from evals.tasks.styles import CAPTION_STYLES, style_of


@dataclass(frozen=True)
class CaptionSet:
    """A data set: how its parts are read, and how many pictures its test part has."""

    load: Callable[[Path, Part], list[CaptionRecord]]
    size: int


SETS = {
    "coco_caption": CaptionSet(load_coco, 5_000),
    "flickr30k_caption": CaptionSet(load_flickr30k, 1_000),
}


class PhotoCaption(Styled[CaptionRecord], CaptionTask):
    """CIDEr of what follows the prompt. An exemplar shows its picture's first sentence.

    The references of these sets are bare sentences, so the prompt's words are not scored with the
    answer, as they are where references begin with them; `further` says what that would give.
    """

    split = "test"

    def __init__(self, name: str, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.name = name
        self.data = SETS[name]
        self.size = self.data.size
        self.style = style_of(CAPTION_STYLES, options.prompt_style, name)
        self.style_name = options.prompt_style
        self.decode_as(self.style)
        self.decode_by(options)
        self.read(folder, options)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": self.style.template, "prompt_style": self.style_name, **self.decoding}

    def load(self, part: Part) -> list[CaptionRecord]:
        return self.data.load(self.folder_path, part)

    def key(self, record: CaptionRecord) -> str:
        return record.image_id

    def query(self, query_id: str) -> Query:
        record = self.questions.by_id[query_id]
        meta = {"captions": list(record.captions)}
        return Query(query_id, self.style.ask(record.image_path), record.captions[0], meta)

    def show(self, record: CaptionRecord) -> Exemplar:
        caption = one_line(record.captions[0])
        return self.style.show(record.image_id, record.image_path, caption)

    def further(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """CIDEr with the prompt's words; without shots METEOR and SPICE, or what is missing."""
        references = {row["id"]: row["references"] for row in rows}
        answers = {row["id"]: row["answer"] for row in rows}
        figures: dict[str, Any] = {}
        if self.style_name == "kosmos":
            whole = {name: f"{self.style.question} {text}" for name, text in answers.items()}
            cider = score_captions(references, whole).cider
            figures[f"{self.metric}_with_the_prompt"] = round(cider, 4)
        if not any(row["shots"] for row in rows):
            scores = score_captions(references, answers, with_java_scores=True)
            found = {"METEOR": scores.meteor, "SPICE": scores.spice}
            figures |= {name: round(x, 4) for name, x in found.items() if x is not None}
            figures |= {"absent": scores.absent, "tokenizer": scores.tokenizer}
        return figures

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """The first caption of another picture: what a caption gains from being one at all."""
        if len(queries) < 2:
            return Baselines()
        dealt = dealt_round([self.questions.by_id[query.id] for query in queries])
        scores = score_texts(queries, [dealt[query.id] for query in queries])
        name = "another picture's caption"
        return Baselines(others={name: scores.cider}, row_scores={name: scores.cider_by_image})

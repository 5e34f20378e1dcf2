"""Captions of pictures whose artwork was never trained on, against the concept's captions."""

from pathlib import Path
from typing import Any

import numpy as np

from corpora.document import Document, ImageSegment, TextSegment
from evals.api import Baselines, Exemplar, Measured, Model, Query
from evals.baselines import flat_pixels, pixel_distances, read_gallery
from evals.options import TaskOptions
from evals.scoring import holds_name
from evals.tasks.captioning import CaptionTask, score_texts
from evals.tasks.local_set import LocalSet
from evals.tasks.naming import PROMPT, Naming


class Caption(LocalSet, CaptionTask):
    """Continues `An image of`; the words of the prompt belong to the caption."""

    name = "caption"
    set_name = "naming"
    parts = Naming.parts
    prefix = PROMPT

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.decode_by(options)

    @property
    def settings(self) -> dict[str, Any]:
        return {"prompt": PROMPT, **self.decoding}

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        answer, captions = self.source.meta(document, "answer", "captions")
        segments = (ImageSegment(document.images[0]), TextSegment(PROMPT))
        return Query(query_id, segments, answer, {"captions": captions})

    def show(self, document: Document) -> Exemplar:
        (captions,) = self.support_source.meta(document, "captions")
        question = (ImageSegment(document.images[0]), TextSegment(PROMPT))
        return Exemplar(document.key, question, captions[0].removeprefix(PROMPT))

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        measured = super().measure(rows)
        num_naming = sum(holds_name(row["answer"], row["gold"]) for row in rows)
        measured.extra["names_the_picture"] = round(100 * num_naming / len(rows), 4)
        return measured

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """Captions of the nearest training pictures; a random one's caption as chance."""
        gallery = read_gallery(self.support_source.dir, model.image_size, model.resize)
        pixels = [flat_pixels(q.images[0], model.image_size, model.resize) for q in queries]
        nearest = pixel_distances(np.stack(pixels), gallery.pixels).argmin(axis=1)
        drawn = np.random.default_rng(0).integers(len(gallery.metas), size=len(queries))
        chance, neighbour = (
            score_texts(queries, [gallery.metas[i]["captions"][0] for i in chosen])
            for chosen in (drawn, nearest)
        )
        return Baselines(
            chance=chance.cider,
            others={"pixel neighbour": neighbour.cider},
            row_scores={"pixel neighbour": neighbour.cider_by_image},
            notes={"chance": "the caption of a training picture drawn at random"},
        )

    def gold_class(self, query: Query) -> str:
        return query.gold

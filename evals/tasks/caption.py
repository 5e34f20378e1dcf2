"""Captions of pictures whose artwork was never trained on, against the concept's captions."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from corpora.document import Document, ImageSegment, Segment, TextSegment
from evals.api import Baselines, GenerateRequest, Measured, Model, Prompt, Query, Support, Task
from evals.captions import CaptionScores, has_official_tokenizer, one_line, score_captions
from evals.controls import flat_pixels, pixel_distances, read_gallery
from evals.scoring import bootstrap_se, holds_name
from evals.tasks.naming import PROMPT
from evals.tasks.sources import Source


class Caption(Task):
    """Continues `An image of` with beam search; the prompt's words belong to the caption."""

    name = "caption"
    unit = ""

    def __init__(
        self,
        data_dir: Path,
        split: str = "final",
        num_beams: int = 5,
        max_new_tokens: int = 30,
        length_penalty: float = 1.0,
    ) -> None:
        self.split = split
        self.num_beams = num_beams
        self.max_new_tokens = max_new_tokens
        self.length_penalty = length_penalty
        self.metric = "CIDEr" if has_official_tokenizer() else "cider_d_simple"
        self.corpus_name = f"naming_{split}"
        self.source = Source(data_dir, f"eval/{self.corpus_name}")
        self.data_dir = data_dir

    @cached_property
    def support_source(self) -> Source:
        return Source(self.data_dir, "eval/naming_support")

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "prompt": PROMPT,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "length_penalty": self.length_penalty,
        }

    @property
    def data_fingerprint(self) -> str:
        return self.source.corpus.fingerprint

    def ids(self) -> list[str]:
        return self.source.ids()

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        answer, captions = self.source.meta(document, "answer", "captions")
        segments = (ImageSegment(document.images[0]), TextSegment(PROMPT))
        return Query(query_id, segments, answer, {"captions": captions})

    def support(self) -> Support:
        return self.support_source.support(self._show)

    def _show(self, document: Document) -> tuple[Segment, ...]:
        (captions,) = self.support_source.meta(document, "captions")
        return (ImageSegment(document.images[0]), TextSegment(captions[0]))

    def request(self, prompt: Prompt) -> GenerateRequest:
        return GenerateRequest(prompt, self.max_new_tokens, self.num_beams, self.length_penalty)

    def row(self, query: Query, response: Any) -> dict[str, Any]:
        return {
            "raw": response.text,
            "answer": one_line(PROMPT + response.text),
            "candidates": None,
            "gold": query.gold,
            "references": query.meta["captions"],
            "is_capped": response.is_capped,
            "score": None,  # CIDEr of a picture depends on all others: see results.json
        }

    def row_scores(self, rows: list[dict[str, Any]]) -> list[float]:
        by_image = _score(rows).cider_by_image
        return [by_image[row["id"]] for row in rows]

    def measure(self, rows: list[dict[str, Any]]) -> Measured:
        scores = _score(rows)
        num_naming = sum(holds_name(row["answer"], row["gold"]) for row in rows)
        extra = {
            "bleu_4" + scores.suffix: round(scores.bleu_4, 4),
            "rouge_l" + scores.suffix: round(scores.rouge_l, 4),
            "names_the_picture": round(100 * num_naming / len(rows), 4),
            "num_capped": sum(row["is_capped"] for row in rows),
            "num_empty": sum(not row["raw"].strip() for row in rows),
            "num_distinct": len({row["answer"] for row in rows}),
        }
        return Measured(scores.cider, bootstrap_se(list(scores.cider_by_image.values())), extra)

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """Captions of the nearest training pictures; a random one's caption as chance."""
        gallery = read_gallery(self.support_source.dir, model.image_size, model.resize)
        pixels = [flat_pixels(q.images[0], model.image_size, model.resize) for q in queries]
        nearest = pixel_distances(np.stack(pixels), gallery.pixels).argmin(axis=1)
        drawn = np.random.default_rng(0).integers(len(gallery.metas), size=len(queries))
        chance, neighbour = (
            _score_texts(queries, [gallery.metas[i]["captions"][0] for i in chosen])
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


def _score(rows: list[dict[str, Any]]) -> CaptionScores:
    return score_captions(
        {row["id"]: row["references"] for row in rows}, {row["id"]: row["answer"] for row in rows}
    )


def _score_texts(queries: list[Query], captions: list[str]) -> CaptionScores:
    references = {query.id: query.meta["captions"] for query in queries}
    hypotheses = {query.id: text for query, text in zip(queries, captions, strict=True)}
    return score_captions(references, hypotheses)

"""Rendered SST-2: is the opinion drawn in the picture positive or negative?"""

from functools import cached_property
from pathlib import Path

from evals.api import ImageFile, Query, Support
from evals.layouts.release import lacking, listing_fingerprint
from evals.layouts.rendered_sst2 import SIZES, Opinion, load
from evals.options import TaskOptions
from evals.tasks.sentiment import ChainOfThought, SentimentTask


class RenderedSst2(SentimentTask):
    """Of the test split; shots come from train."""

    name = corpus_name = "rendered_sst2"
    split = "test"

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        self.data_folder = folder
        self.use_norm(options.norm)
        self.opinions = {opinion.id: opinion for opinion in load(folder, self.split)}

    @cached_property
    def data_fingerprint(self) -> str:
        return _fingerprint(self.data_folder, self.opinions)

    def ids(self) -> list[str]:
        return list(self.opinions)

    def problems(self) -> dict[str, int]:
        return lacking(SIZES[self.split], len(self.opinions))

    def query(self, query_id: str) -> Query:
        opinion = self.opinions[query_id]
        return self.asked(query_id, ImageFile(opinion.image_path), opinion.label)

    @cached_property
    def _support(self) -> Support:
        training = {f"train/{opinion.id}": opinion for opinion in load(self.data_folder, "train")}
        return Support(
            tuple(sorted(training)),
            _fingerprint(self.data_folder, training),
            lambda name: self.shown(
                name, ImageFile(training[name].image_path), training[name].label
            ),
        )

    def support(self) -> Support:
        return self._support


class RenderedSst2Cot(RenderedSst2, ChainOfThought):
    """The same pictures in two stages, without shots."""

    name = "rendered_sst2_cot"

    def __init__(self, folder: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(folder, options)
        self.decode_by(options)


def _fingerprint(folder: Path, opinions: dict[str, Opinion]) -> str:
    return listing_fingerprint(folder, (opinion.image_path for opinion in opinions.values()))

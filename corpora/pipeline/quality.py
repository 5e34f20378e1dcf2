"""datatrove's own text filters as `Judge` steps, with words by rule (`words.py`)."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.utils.lid import FT176LID

from corpora.pipeline.judge import Judge
from corpora.pipeline.record import LAYOUT
from corpora.pipeline.words import WORDS

if TYPE_CHECKING:
    from corpora.pipeline.filters import FilterOptions


class Quality(Judge):
    """One datatrove filter. Records without text pass: there is nothing to judge.

    The filter sees a copy without our metadata, because some leave notes of their own there.
    """

    def __init__(self, name: str, wrapped: BaseFilter, drops_dir: str | Path) -> None:
        super().__init__(drops_dir)
        self.name = name
        self.wrapped = wrapped

    def judge(self, record: Record) -> str | None:
        if not record.text.strip():
            return None
        copy = Record(record.text, record.id)
        is_kept, reason = get_filter_result(self.wrapped.filter(copy))
        record.text = copy.text
        return None if is_kept else reason or self.name


class Rewriting(Quality):
    """A datatrove filter that rewrites the text, on records with one text segment only.

    With several, nothing says which lines of `text` belong to which segment; they pass and are
    counted.
    """

    def judge(self, record: Record) -> str | None:
        layout = record.metadata.get(LAYOUT, [{"text": record.text}])
        if sum("text" in item for item in layout) != 1:
            self.edited["not judged: several text segments"] += 1
            return None
        before = record.text
        reason = super().judge(record)
        if reason is None and record.text != before:
            self.edited["rewritten"] += 1
        return reason


class LocalLanguageModel(FT176LID):
    """datatrove's fastText language identification, with a model file that lies here."""

    def __init__(self, path: str, languages: list[str]) -> None:
        super().__init__(languages)
        self.path = path

    @property
    def model(self) -> Any:
        return _language_model(self.path)


@lru_cache(maxsize=1)
def _language_model(path: str) -> Any:
    """Read once a process: a step is copied for every unit, and a model cannot be pickled."""
    from fasttext.FastText import _FastText

    return _FastText(path)


def steps(options: "FilterOptions", drops_dir: str | Path) -> list[PipelineStep]:
    """The filters that only judge."""
    found: list[tuple[str, BaseFilter]] = []
    if options.gopher_repetition:
        found.append(("gopher_repetition", GopherRepetitionFilter(language=WORDS)))
    if options.gopher_quality:
        found.append(("gopher_quality", GopherQualityFilter(language=WORDS)))
    if options.fineweb_quality:
        found.append(("fineweb_quality", FineWebQualityFilter(language=WORDS)))
    if options.fasttext_model:
        found.append(("language", _language_filter(options)))
    return [Quality(name, wrapped, drops_dir) for name, wrapped in found]


def rewriting_steps(options: "FilterOptions", drops_dir: str | Path) -> list[PipelineStep]:
    """The filters that also drop lines."""
    return [Rewriting("c4", C4QualityFilter(language=WORDS), drops_dir)] if options.c4 else []


def _language_filter(options: "FilterOptions") -> LanguageFilter:
    languages = [options.fasttext_language]
    wrapped = LanguageFilter(languages, language_threshold=options.fasttext_score)
    wrapped.model = LocalLanguageModel(options.fasttext_model, languages)
    return wrapped

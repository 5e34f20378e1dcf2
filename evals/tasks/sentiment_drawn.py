"""The sentiment of film reviews, drawn as pictures."""

from pathlib import Path

from corpora.document import Document, ImageSegment
from evals.api import Exemplar, Query
from evals.options import TaskOptions
from evals.tasks.local_set import LocalSet
from evals.tasks.sentiment import ChainOfThought, SentimentTask


class Sentiment(LocalSet, SentimentTask):
    """Of film reviews, drawn."""

    name = set_name = "sentiment"

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.use_norm(options.norm)

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        (answer,) = self.source.meta(document, "answer")
        return self.asked(query_id, ImageSegment(document.images[0]), answer)

    def show(self, document: Document) -> Exemplar:
        (answer,) = self.support_source.meta(document, "answer")
        return self.shown(document.key, ImageSegment(document.images[0]), answer)


class SentimentCot(Sentiment, ChainOfThought):
    """The same reviews, in two stages."""

    name = "sentiment_cot"
    takes_shots = False

    def __init__(self, data_dir: Path, options: TaskOptions = TaskOptions()) -> None:  # noqa: B008
        super().__init__(data_dir, options)
        self.decode_by(options)

"""Drawn Raven's matrices."""

from dataclasses import replace

from corpora.document import ImageSegment
from evals.api import Baselines, Model, Query
from evals.tasks.local_set import LocalSet
from evals.tasks.ranking import closed_set_baselines
from evals.tasks.raven import MatrixTask


class RavenDrawn(LocalSet, MatrixTask):
    """Drawn matrices of eight cells, eight candidates by bisection."""

    name = "raven_drawn"
    set_name = "raven"
    takes_shots = False

    def query(self, query_id: str) -> Query:
        document = self.source.document(query_id)
        num_cells, answer, vote = self.source.meta(document, "num_context", "answer", "vote")
        pictures = [ImageSegment(data) for data in document.images]
        query = self.asked(query_id, pictures[:num_cells], pictures[num_cells:], answer)
        return replace(query, meta=query.meta | {"vote": vote})

    def baselines(self, queries: list[Query], model: Model) -> Baselines:
        """A vote over the candidates: what most of them have in common, with no look at the cells.

        Ties count by their part.
        """
        hits = {}
        for query in queries:
            votes = query.meta["vote"]
            best = [
                name
                for name, n in zip(query.meta["candidates"], votes, strict=True)
                if n == max(votes)
            ]
            hits[query.id] = (query.gold in best) / len(best)
        return replace(
            closed_set_baselines(queries),
            others={"vote of the candidates": 100 * sum(hits.values()) / len(hits)},
            row_scores={"vote of the candidates": hits},
        )

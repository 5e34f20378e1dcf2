"""What the nearest training picture says, which a ranked name or a caption is held against."""

from pathlib import Path

import numpy as np

from evals.api import Baselines, Model, Query
from evals.baselines import flat_pixels, neighbour_choices, pixel_distances, read_gallery
from evals.tasks.ranking import closed_set_baselines


def neighbour_baselines(queries: list[Query], support_dir: Path, model: Model) -> Baselines:
    """Chance, the best constant answer, and the candidate whose training picture is nearest."""
    candidates = [query.meta["candidates"] for query in queries]
    golds = [names.index(q.gold) for q, names in zip(queries, candidates, strict=True)]
    gallery = read_gallery(support_dir, model.image_size, model.resize)
    answers = [meta["answer"] for meta in gallery.metas]
    pixels = [flat_pixels(q.images[0], model.image_size, model.resize) for q in queries]
    distances = pixel_distances(np.stack(pixels), gallery.pixels)
    known = set(answers)
    hits = {
        query.id: float(choice == gold)
        for query, gold, choice in zip(
            queries, golds, neighbour_choices(distances, answers, candidates), strict=True
        )
    }
    num_known = sum(query.gold in known for query in queries)
    # A concept that was never trained has no training picture to be near to.
    has_neighbour = num_known > 0
    blind = closed_set_baselines(queries)
    return Baselines(
        chance=blind.chance,
        majority=blind.majority,
        others={"pixel neighbour": 100 * sum(hits.values()) / len(hits)} if has_neighbour else {},
        row_scores={"pixel neighbour": hits} if has_neighbour else {},
        notes={
            **blind.notes,
            "training pictures": len(answers),
            "queries whose name has a training picture": num_known,
        },
    )

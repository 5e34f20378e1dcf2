"""The same prompts with something taken away that an honest score needs.

* blind: the queries' pictures are exchanged; shots stay. A score that does not drop is a language
  prior.
* no picture: the query's pictures are removed, its text stays.
* permuted: the shots' answers are taken away from their pictures. A score that does not drop did
  not come from the mapping that the shots show.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from corpora.document import ImageSegment
from evals.api import Prompt, Query, Task
from evals.shots import draw_order, pictures_of, segment_hash, without_pictures


def blinded(
    prompts: Sequence[Prompt], gold_class: Callable[[Query], str], seed: int
) -> list[Prompt] | None:
    """The prompts with another query's pictures, of another class where that can be done for all:
    not where a class has more than half of the queries. None where the pictures allow no exchange.
    """
    queries = [prompt.query for prompt in prompts]
    donors = derange(queries, gold_class, seed) or derange(queries, lambda query: query.id, seed)
    if donors is None:
        return None
    return [replace(p, query=with_pictures_of(p.query, donors[p.query.id])) for p in prompts]


def unpictured(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without the query's pictures."""
    return [prompt.with_query(without_pictures(prompt.query.segments)) for prompt in prompts]


def permuted(prompts: Sequence[Prompt], task: Task, seed: int) -> list[Prompt]:
    """The prompts whose shots show other answers, by `Task.permuted`."""
    return [task.permuted(prompt, f"{seed}\n{prompt.query.id}") for prompt in prompts]


def redealt(prompt: Prompt, key: str) -> Prompt:
    """The prompt whose shots show each other's answers, dealt uniformly: what `Task.permuted` does
    where an answer of another prompt would mean nothing."""
    order = draw_order(f"{key}\npermuted", len(prompt.shots))
    shots = tuple(
        replace(shot, answer=prompt.shots[place].answer)
        for shot, place in zip(prompt.shots, order, strict=True)
    )
    return replace(prompt, shots=shots)


def derange(
    queries: Sequence[Query], gold_class: Callable[[Query], str], seed: int
) -> dict[str, Query] | None:
    """Gives every query the pictures of a donor with as many pictures, but others, and of another
    class.

    Args:
        queries: The queries of a cell; every donor is one of them and gives once.
        gold_class: A query's class; its id where answers are open.
        seed: Decides the exchange together with the ids, not the order of `queries`.

    Returns:
        Query id to its donor, or None where no exchange was found (one picture or one class only,
        or more than half of the queries alike).
    """
    by_number = defaultdict(list)
    for query in queries:
        by_number[len(query.images)].append(query)
    donors: dict[str, Query] = {}
    for group in by_number.values():
        found = _derange(group, gold_class, seed)
        if found is None:
            return None
        donors |= found
    return donors


def _derange(
    queries: Sequence[Query], gold_class: Callable[[Query], str], seed: int
) -> dict[str, Query] | None:
    def mixed(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{text}".encode()).digest()

    content = {q.id: "".join(map(segment_hash, pictures_of(q.segments))) for q in queries}
    kind = {q.id: gold_class(q) for q in queries}

    def is_bad(query: Query, donor: Query) -> bool:
        return content[query.id] == content[donor.id] or kind[query.id] == kind[donor.id]

    # Queries of one picture stand together, groups and members in a seeded order; a rotation by
    # the largest group then takes everyone out of their own.
    order = sorted(queries, key=lambda q: (mixed(content[q.id]), mixed(q.id)))
    shift = max(Counter(content.values()).values(), default=0)
    donors = order[shift:] + order[:shift]
    # What still clashes, because classes cut across pictures, trades with the first that can.
    for i, query in enumerate(order):
        if is_bad(query, donors[i]):
            for j, other in enumerate(order):
                if not is_bad(query, donors[j]) and not is_bad(other, donors[i]):
                    donors[i], donors[j] = donors[j], donors[i]
                    break
            else:
                return None
    return {query.id: donor for query, donor in zip(order, donors, strict=True)}


def with_pictures_of(query: Query, donor: Query) -> Query:
    """The query with the donor's pictures in its own picture places; text and gold stay."""
    if len(query.images) != len(donor.images):
        raise ValueError(
            f"{query.id} has {len(query.images)} pictures, its donor {donor.id} {len(donor.images)}"
        )
    pictures = (segment for segment in donor.segments if isinstance(segment, ImageSegment))
    segments = tuple(
        next(pictures) if isinstance(segment, ImageSegment) else segment
        for segment in query.segments
    )
    return replace(query, segments=segments)

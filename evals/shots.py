"""Which exemplars a query gets: a pure function of (seed, task, split, support, query id, k).

Nothing else enters: not the batch size, the rank, the order of the queries or a global generator.
The k = 2 shots are among the k = 4 shots, so that a sweep over k measures k. How the support set is
put in order for a query is `Selection.how`:

* `random`: a shuffle by hash.
* `balanced`: the same shuffle, one of each class in turn.
* `rices_image`, `rices_text`: by likeness to the query (Retrieval-based In-Context Example
  Selection, Flamingo), likest last; features come from `evals.likeness`.
* `fixed`: the ids of a file, in the order of the file.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from corpora.document import ImageSegment, Segment, TextSegment
from evals.api import (
    SEPARATOR_TEXTS,
    Exemplar,
    ImageFile,
    Model,
    Prompt,
    Query,
    Separator,
    Support,
)
from evals.select import by_hash
from mllm.errors import UserError
from mllm.files import fingerprint


class DoesNotFit(UserError):
    """Prompts longer than the model: a suite goes without such a cell and says so."""


How = Literal["random", "balanced", "rices_image", "rices_text", "fixed"]
HOWS: tuple[How, ...] = ("random", "balanced", "rices_image", "rices_text", "fixed")

Rank = Callable[[Query], list[int]]  # places in Support.ids, likest first


@dataclass(frozen=True)
class Selection:
    """How exemplars are chosen.

    Args:
        fixed: Of `fixed`: exemplar ids in order.
        support_size: At most this many samples of the support set, by id hash; None for all.
    """

    how: How = "random"
    fixed: tuple[str, ...] = ()
    support_size: int | None = None

    def settings(self) -> dict:
        return {
            "select": self.how,
            "fixed_shots": fingerprint(list(self.fixed)) if self.how == "fixed" else None,
            "support_size": self.support_size,
        }


def read_fixed(path: Path) -> tuple[str, ...]:
    """The ids of a file: a JSON list, or one id a line.

    Raises:
        UserError: The file cannot be read, is empty, or names an id twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--shots-file {path}: cannot be read as UTF-8 text ({error})") from None
    try:
        ids = json.loads(text) if text.lstrip().startswith("[") else text.split("\n")
    except ValueError as error:
        raise UserError(f"--shots-file {path}: not valid JSON ({error})") from None
    names = [str(item).strip() for item in ids]
    names = [name for name in names if name]
    if not names:
        raise UserError(f"--shots-file {path}: names no exemplar; one id a line, or a JSON list")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--shots-file {path}: names {doubled[0]!r} twice")
    return tuple(names)


def limited(support: Support, size: int | None) -> Support:
    """At most `size` samples of a support set, by id hash; of one in rounds the first."""
    if size is None or size >= len(support.ids):
        return support
    if support.round_size is not None:
        return replace(support, ids=support.ids[:size])
    ids = tuple(sorted(by_hash(support.ids)[:size]))
    return replace(support, ids=ids, fingerprint=fingerprint([support.fingerprint, list(ids)]))


def draw_order(key: str, num_items: int) -> Iterator[int]:
    """Items 0..num_items-1 in a random order that `key` alone decides, lazily.

    A Fisher-Yates shuffle whose random numbers are SHA-256 of (key, position): the same on every
    machine and in every Python.
    """
    moved: dict[int, int] = {}
    for position in range(num_items):
        digest = hashlib.sha256(f"{key}\n{position}".encode()).digest()
        # 64 bits over a few thousand items: the bias of the remainder is below 1e-15.
        chosen = position + int.from_bytes(digest[:8], "big") % (num_items - position)
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.get(position, position)


def rounds_order(key: str, num_items: int, round_size: int) -> Iterator[int]:
    """Items 0..num_items-1 round by round, those of a round in an order that `key` decides."""
    for start in range(0, num_items, round_size):
        size = min(round_size, num_items - start)
        yield from (start + place for place in draw_order(f"{key}\n{start}", size))


def balanced_order(key: str, support: Support) -> Iterator[int]:
    """One of each class in turn, classes and their members in orders that `key` decides."""
    classes = _classes(support)
    names = sorted(classes)
    turns = [names[i] for i in draw_order(f"{key}\nclasses", len(names))]
    members = {
        name: map(classes[name].__getitem__, draw_order(f"{key}\n{name}", len(classes[name])))
        for name in names
    }
    while turns:
        for name in list(turns):
            place = next(members[name], None)
            if place is None:
                turns.remove(name)
            else:
                yield place


@lru_cache(maxsize=2)
def _classes(support: Support) -> dict[str, list[int]]:
    label = support.label or (lambda sample_id: support.read(sample_id).answer)
    classes = defaultdict(list)
    for place, sample_id in enumerate(support.ids):
        classes[label(sample_id)].append(place)
    return dict(classes)


@lru_cache(maxsize=4096)  # keeps the encoded pictures alive, so not without bound
def picture_hash(data: bytes) -> str:
    """Over decoded pixels, so that one picture in two encodings is one picture."""
    from mllm.images import open_picture  # imports torch, which `mllm eval list` can do without

    picture = open_picture(data)
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def segment_hash(segment: ImageSegment) -> str:
    """`picture_hash` of a picture in a prompt.

    Raises:
        UserError: It is a file that does not open.
    """
    try:
        return picture_hash(segment.data)
    except ValueError as error:
        if isinstance(segment, ImageFile):
            raise UserError(
                f"{segment.path}: does not open as a picture ({error}); download it again"
            ) from None
        raise


def pictures_of(segments: Iterable[Segment]) -> list[ImageSegment]:
    return [segment for segment in segments if isinstance(segment, ImageSegment)]


def draw_shots(
    query: Query,
    support: Support,
    *,
    seed: int,
    task: str,
    split: str,
    num_shots: int,
    selection: Selection = Selection(),
    rank: Rank | None = None,
) -> tuple[Exemplar, ...]:
    """The exemplars of one query: never the query itself, never a sample with its picture, and for
    tasks without pictures never one with its question.

    Args:
        rank: Of `rices_image` and `rices_text`.

    Raises:
        UserError: The support set has fewer usable exemplars than `num_shots`.
    """
    if num_shots == 0:
        return ()
    key = "\n".join((str(seed), task, split, support.fingerprint, query.id))
    own_pictures = {segment_hash(picture) for picture in pictures_of(query.segments)}
    shots: list[Exemplar] = []
    for place in _order(query, support, key, selection, rank):
        if support.ids[place] == query.id:
            continue
        exemplar = support.read(support.ids[place])
        is_own = (
            not own_pictures.isdisjoint(map(segment_hash, pictures_of(exemplar.question)))
            if own_pictures
            else exemplar.question == query.segments
        )
        if not is_own:
            shots.append(exemplar)
            if len(shots) == num_shots:
                return tuple(reversed(shots) if rank else shots)
    raise UserError(
        f"--shots {num_shots}: query {query.id} of {task}_{split} has only {len(shots)} usable "
        f"exemplars among {len(support.ids)}; ask for fewer shots"
    )


def _order(
    query: Query, support: Support, key: str, selection: Selection, rank: Rank | None
) -> Iterator[int]:
    match selection.how:
        case "balanced":
            return balanced_order(key, support)
        case "fixed":
            return iter(_fixed_places(support, selection.fixed))
        case "rices_image" | "rices_text":
            assert rank is not None
            return iter(rank(query))
    if support.round_size is not None:
        return rounds_order(key, len(support.ids), support.round_size)
    return draw_order(key, len(support.ids))


@lru_cache(maxsize=2)
def _fixed_places(support: Support, ids: tuple[str, ...]) -> list[int]:
    places = {sample_id: place for place, sample_id in enumerate(support.ids)}
    if unknown := [sample_id for sample_id in ids if sample_id not in places]:
        raise UserError(
            f"--shots-file: {unknown[0]!r} is no sample of the support set, whose ids look like "
            f"{support.ids[0]!r}"
        )
    return [places[sample_id] for sample_id in ids]


def without_pictures(segments: tuple) -> tuple:
    """The texts of a question or a prompt."""
    return tuple(segment for segment in segments if not isinstance(segment, ImageSegment))


def build_prompts(
    queries: list[Query],
    support: Callable[[], Support],
    *,
    seed: int,
    task: str,
    split: str,
    num_shots: int,
    separator: Separator,
    selection: Selection = Selection(),
    rank: Rank | None = None,
    is_textual: bool = False,
) -> list[Prompt]:
    """One prompt a query, in order; `support` is opened only where there are shots.

    Args:
        is_textual: The shots' pictures are removed and their text is kept (`0*`).
    """
    if num_shots == 0:
        return [Prompt((), query, separator) for query in queries]
    whole = support()
    exemplars = limited(whole, selection.support_size)
    if whole.own and selection.how not in ("random", "balanced"):
        raise UserError(
            f"--select {selection.how}: each query of {task} has exemplars of its own; use random "
            f"or balanced"
        )
    prompts = []
    for query in queries:
        shots = draw_shots(
            query,
            limited(whole.own(query), selection.support_size) if whole.own else exemplars,
            seed=seed,
            task=task,
            split=split,
            num_shots=num_shots,
            selection=selection,
            rank=rank,
        )
        if is_textual:
            shots = tuple(replace(s, question=without_pictures(s.question)) for s in shots)
        prompts.append(Prompt(shots, query, separator))
    return prompts


def text_tokens(prompt: Prompt, model: Model) -> int:
    """Tokens of all text in a prompt, separators included, without `<s>`."""
    per_shot = 1 if prompt.separator == "eos" else 0
    if text := SEPARATOR_TEXTS.get(prompt.separator):
        per_shot = len(model.encode(text))
    parts = (*(shot.segments for shot in prompt.shots), prompt.query.segments)
    texts = [s.text for part in parts for s in part if isinstance(s, TextSegment)]
    return per_shot * len(prompt.shots) + sum(len(model.encode(text)) for text in texts)


def num_positions(prompt: Prompt, model: Model) -> int:
    """Positions a prompt takes: `<s>`, text, and (latents + 2) a picture."""
    return 1 + text_tokens(prompt, model) + prompt.num_images * (model.num_latents + 2)


def check_budget(prompts: list[Prompt], answer_positions: list[int], model: Model) -> None:
    """Refuses, before anything runs, prompts that do not fit: nothing is ever cut silently.

    Args:
        prompts: All prompts of a cell.
        answer_positions: For each, the positions of its longest answer.

    Raises:
        DoesNotFit: With the arithmetic of the longest one.
    """
    if model.max_positions is None:
        return
    totals = [
        num_positions(prompt, model) + answer
        for prompt, answer in zip(prompts, answer_positions, strict=True)
    ]
    longest = max(range(len(prompts)), key=totals.__getitem__)
    if totals[longest] <= model.max_positions:
        return
    prompt = prompts[longest]
    advice = "ask for fewer shots" if prompt.shots else "the model is too short for this task"
    raise DoesNotFit(
        f"--shots {len(prompt.shots)} does not fit: query {prompt.query.id} needs "
        f"{prompt.num_images} images x ({model.num_latents} + 2) + {text_tokens(prompt, model)} "
        f"text + 1 <s> + {answer_positions[longest]} answer = {totals[longest]} positions, and the "
        f"model has {model.max_positions}; {advice}"
    )

"""Which exemplars a query gets: a pure function of (seed, task, split, support, query id, k).

Nothing else enters: not the batch size, the rank, the order of the queries or a global generator.
The k = 2 shots are the first two of the k = 4 shots, so that a sweep over k measures k.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache

from corpora.document import TextSegment
from evals.api import Exemplar, Model, Prompt, Query, Separator, Support
from mllm.errors import UserError


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


@lru_cache(maxsize=4096)  # keeps the encoded pictures alive, so not without bound
def picture_hash(data: bytes) -> str:
    """Over decoded pixels, so that one picture in two encodings is one picture."""
    from mllm.images import open_picture  # imports torch, which `mllm eval list` can do without

    picture = open_picture(data)
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def draw_shots(
    query: Query, support: Support, *, seed: int, task: str, split: str, num_shots: int
) -> tuple[Exemplar, ...]:
    """The exemplars of one query: never the query itself, never a sample with its picture.

    Raises:
        UserError: The support set has fewer usable exemplars than `num_shots`.
    """
    if num_shots == 0:
        return ()
    key = "\n".join((str(seed), task, split, support.fingerprint, query.id))
    own_pictures = {picture_hash(data) for data in query.images}
    shots: list[Exemplar] = []
    for i in draw_order(key, len(support.ids)):
        if support.ids[i] == query.id:
            continue
        exemplar = support.read(support.ids[i])
        if own_pictures.isdisjoint(picture_hash(data) for data in exemplar.images):
            shots.append(exemplar)
            if len(shots) == num_shots:
                return tuple(shots)
    raise UserError(
        f"--shots {num_shots}: query {query.id} of {task}_{split} has only {len(shots)} usable "
        f"exemplars among {len(support.ids)}; ask for fewer shots"
    )


def build_prompts(
    queries: list[Query],
    support: Callable[[], Support],
    *,
    seed: int,
    task: str,
    split: str,
    num_shots: int,
    separator: Separator,
) -> list[Prompt]:
    """One prompt a query, in order; `support` is opened only where there are shots."""
    if num_shots == 0:
        return [Prompt((), query, separator) for query in queries]
    exemplars = support()
    return [
        Prompt(
            draw_shots(query, exemplars, seed=seed, task=task, split=split, num_shots=num_shots),
            query,
            separator,
        )
        for query in queries
    ]


def text_tokens(prompt: Prompt, model: Model) -> int:
    """Tokens of all text in a prompt, separators included, without `<s>`."""
    num_separators = 0 if prompt.separator == "none" else len(prompt.shots)
    parts = (*(shot.segments for shot in prompt.shots), prompt.query.segments)
    texts = [s.text for part in parts for s in part if isinstance(s, TextSegment)]
    return num_separators + sum(len(model.encode(text)) for text in texts)


def num_positions(prompt: Prompt, model: Model) -> int:
    """Positions a prompt takes: `<s>`, text, and (latents + 2) a picture."""
    return 1 + text_tokens(prompt, model) + prompt.num_images * (model.num_latents + 2)


def check_budget(prompts: list[Prompt], answer_tokens: list[int], model: Model) -> None:
    """Refuses, before anything runs, prompts that do not fit: nothing is ever cut silently.

    Args:
        prompts: All prompts of a cell.
        answer_tokens: For each, the tokens of its longest answer.

    Raises:
        UserError: With the arithmetic of the longest one.
    """
    totals = [
        num_positions(prompt, model) + answer
        for prompt, answer in zip(prompts, answer_tokens, strict=True)
    ]
    longest = max(range(len(prompts)), key=totals.__getitem__)
    if model.max_positions is None or totals[longest] <= model.max_positions:
        return
    prompt = prompts[longest]
    raise UserError(
        f"--shots {len(prompt.shots)} does not fit: query {prompt.query.id} needs "
        f"{prompt.num_images} images x ({model.num_latents} + 2) + {text_tokens(prompt, model)} "
        f"text + 1 <s> + {answer_tokens[longest]} answer = {totals[longest]} positions, and the "
        f"model has {model.max_positions}; ask for fewer shots"
    )

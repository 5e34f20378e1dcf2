"""Prompts through the model's narrow door, stage by stage, and the positions that answers take."""

from collections.abc import Sequence

from corpora.document import ImageSegment
from evals.api import (
    GenerateRequest,
    Model,
    Prompt,
    RankRequest,
    Request,
    Response,
    Task,
    TextScore,
    VariantRequest,
)
from evals.shots import num_positions, pictures_of, segment_hash


def ask(task: Task, model: Model, batch: Sequence[Prompt]) -> list[list[Response]]:
    """Each prompt's responses: to its request, then to every follow-up, stage by stage."""
    answers: list[list[Response]] = [[] for _ in batch]
    requests: list[Request | None] = [task.request(prompt) for prompt in batch]
    while any(request is not None for request in requests):
        places = [i for i, request in enumerate(requests) if request is not None]
        asked = _named_if_broken(model, [requests[i] for i in places])  # type: ignore[misc]
        for i, response in zip(places, asked, strict=True):
            answers[i].append(response)
        requests = [
            task.follow_up(prompt, responses) if request is not None else None
            for prompt, responses, request in zip(batch, answers, requests, strict=True)
        ]
    return answers


def _named_if_broken(model: Model, requests: list[Request]) -> Sequence[Response]:
    """The responses; where a picture does not open, the error names its file."""
    try:
        return _through_the_door(model, requests)
    except ValueError:
        for request in requests:
            parts = [shot.question for shot in request.prompt.shots]
            parts.append(request.prompt.query.segments)
            if isinstance(request, VariantRequest):
                parts += request.endings
            for picture in pictures_of(segment for part in parts for segment in part):
                segment_hash(picture)
        raise


def _through_the_door(model: Model, requests: list[Request]) -> Sequence[Response]:
    first = requests[0]
    if isinstance(first, RankRequest | VariantRequest):
        return model.loglikelihood(requests)  # type: ignore[arg-type]
    if isinstance(first, GenerateRequest):
        return model.generate_until(requests)  # type: ignore[arg-type]
    texts = [segment.text for r in requests for segment in r.prompt.query.segments]  # type: ignore[union-attr]
    answers: list[TextScore] = model.loglikelihood_rolling(texts)
    return answers


def answer_positions(request: Request, model: Model) -> int:
    """Positions of the longest answer, pictures of an ending among them."""
    match request:
        case RankRequest():
            return max(len(model.encode(candidate)) for candidate in request.candidates)
        case VariantRequest():
            return max(
                sum(
                    model.num_latents + 2
                    if isinstance(segment, ImageSegment)
                    else len(model.encode(segment.text))
                    for segment in ending
                )
                + len(model.encode(text))
                for ending, text in zip(request.endings, request.texts, strict=True)
            )
        case GenerateRequest(choices=choices) if choices:
            return max(len(model.encode(choice)) for choice in choices) + 1
        case GenerateRequest():
            return request.max_new_tokens
    return -num_positions(request.prompt, model)  # a rolling text may be longer than the model

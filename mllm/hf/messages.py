"""Chat messages to segments, in the form that a model was trained on.

`completion_turns`: that of documents. `instruction_turns`: the template of instruct runs
(`mllm.stream.template`), whose documents the trainer reads by the same function.
"""

from typing import Any, NamedTuple

from mllm.hf.image_processing_mllm import picture_path
from mllm.stream.template import OUTPUT_ROLE, Part, Said, instruction_template


class Turn(NamedTuple):
    """Texts, pictures and ends of answers in order."""

    segments: list[Any]
    is_answer: bool  # the assistant's words: what is scored when labels are asked for


def instruction_turns(
    messages: list[dict[str, Any]], *, asks: bool = False, is_open: bool = False
) -> list[Turn]:
    """The instruction template's parts, each as a turn of its own.

    Args:
        messages: as of `completion_turns`.
        asks, is_open: as of `instruction_template`.
    """
    turns = []
    for message in messages:
        is_scored = message["role"] == OUTPUT_ROLE
        parts = [Part(item, is_scored) for item in content_segments(message.get("content"))]
        turns.append(Said(message["role"], parts))
    parts = instruction_template(turns, asks=asks, is_open=is_open)
    return [Turn([content], is_scored) for content, is_scored in parts]


def completion_turns(messages: list[dict[str, Any]]) -> list[Turn]:
    """What a model trained on documents, not on instructions, is given to go on with.

    A user's text that ends in `?` becomes `Question: ... Answer:`; other text stands as it is; a
    turn of pictures alone ends in `An image of`. The assistant's words follow after a space, and
    the next turn's text begins on a new line: the form of the question-answer documents that such
    a model was trained on.

    Args:
        messages: `{"role": "user" | "assistant" | "system", "content": a text or a content list}`;
            a list holds `{"type": "text", "text": ...}` and `{"type": "image", "image": picture}`.
    """
    turns: list[Turn] = []
    for message in messages:
        segments = content_segments(message.get("content"))
        if message["role"] == "assistant":
            words = [" " + item if isinstance(item, str) else item for item in segments]
            turns.append(Turn(words, is_answer=True))
            continue
        places = [i for i, item in enumerate(segments) if isinstance(item, str)]
        if places:
            last = segments[places[-1]]
            if last.endswith("?"):
                segments[places[-1]] = f"Question: {last} Answer:"
        elif segments:
            places = [len(segments)]
            segments.append("An image of")
        if places and any(turn.segments for turn in turns):
            segments[places[0]] = f"\n{segments[places[0]]}"
        turns.append(Turn(segments, is_answer=False))
    return turns


def content_segments(content: str | list[dict[str, Any]] | None) -> list[Any]:
    """Texts (stripped, empty ones dropped) and pictures of one message, in order.

    Raises:
        ValueError: no content, or an item that is neither a text nor a local picture.
    """
    if not isinstance(content, (str, list, tuple)):
        raise ValueError(
            f"a message's content is {type(content).__name__}; it must be a text, or a list of "
            'items such as {"type": "text", "text": ...}'
        )
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    segments: list[Any] = []
    for item in items:
        match item:
            case {"type": "text", "text": str(text)}:
                if text.strip():
                    segments.append(text.strip())
            case {"type": "image", "image": picture}:
                segments.append(picture_path(picture) if isinstance(picture, str) else picture)
            case {"type": "image", "path": path}:
                segments.append(picture_path(path))
            case _:
                found = f"with keys {sorted(item)}" if isinstance(item, dict) else repr(item)
                raise ValueError(
                    f"content item {found} is neither a text nor a picture given "
                    "as `image` or `path`; nothing is fetched from the network"
                )
    return segments

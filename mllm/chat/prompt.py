"""A conversation as segments of one row, and what each part of it takes of the context.

A model trained on documents does not follow instructions; it goes on with text. So its turns are
put in the form of the documents that it knows (`mllm.hf.messages.completion_turns`): text that ends
in `?` becomes `Question: ... Answer:`, other text stands as it is, and pictures without text are
followed by `An image of`. Shots stand before, each a document of its own that `</s>` ends, as in
few-shot evaluation. A model of the instruct stage is asked in that stage's template, in which shots
are turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mllm.chat.conversation import Conversation, Shot, Turn, messages_of
from mllm.chat.pictures import Picture
from mllm.stream.template import END_OF_DOCUMENT, Mark

Segment = str | Picture | Mark

DESCRIBE = "Describe the image."  # to a model of the instruct stage


def segments_of(conversation: Conversation, template: str) -> list[Segment]:
    """All that the model is given, in order; it ends where the answer begins.

    Args:
        template: of the export's processor (`mllm.hf.processing_mllm.TEMPLATES`).
    """
    from mllm.hf.messages import completion_turns, instruction_turns

    system, shots, turns = conversation.system, conversation.shots, conversation.asked_turns
    if template == "instruction":
        messages = messages_of(system, [*shots, *turns])
        return _flat(instruction_turns(messages, asks=_asks(turns)))
    segments: list[Segment] = []
    for shot in shots:
        segments += [*_flat(completion_turns(messages_of("", [shot]))), END_OF_DOCUMENT]
    return segments + _flat(completion_turns(messages_of(system, turns)))


def _asks(turns: Sequence[Turn | Shot]) -> bool:
    return bool(turns) and turns[-1].answer is None


def _flat(turns: Sequence[Any]) -> list[Segment]:
    return [segment for turn in turns for segment in turn.segments]


class Tokens(Protocol):
    """What counts positions: the part of `MllmProcessor` that is needed."""

    num_latents: int
    template: str

    def encode(self, segments: list[Any]) -> Any: ...


@dataclass(frozen=True)
class Usage:
    """Positions that a prompt takes, by what takes them. `start` is `<s>`."""

    start: int
    shots: int
    system: int
    turns: int
    pictures: int  # of all of these, positions of pictures
    num_pictures: int

    @property
    def total(self) -> int:
        return self.start + self.shots + self.system + self.turns

    @property
    def text(self) -> int:
        return self.total - self.pictures


def usage_of(conversation: Conversation, processor: Tokens) -> Usage:
    """How the prompt of the conversation as it stands divides up."""

    def length(part: Conversation) -> int:
        return len(processor.encode(segments_of(part, processor.template)).token_ids)

    shots = length(Conversation(shots=conversation.shots))
    told = length(Conversation(conversation.system, conversation.shots))
    whole = processor.encode(segments_of(conversation, processor.template))
    num_pictures = len(whole.pictures)
    return Usage(
        start=1,
        shots=shots - 1,
        system=told - shots,
        turns=len(whole.token_ids) - told,
        pictures=num_pictures * (processor.num_latents + 2),
        num_pictures=num_pictures,
    )

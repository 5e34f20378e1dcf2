"""The instruction template: who says what, as text. One function for training and for chat.

    <image> Instruction: what colour is it?
    Output: red</s>
    Instruction: and its shape?
    Output: a circle</s>

KOSMOS-1 was tuned on (instruction, input, output) and its template is not published; the words are
these three. Each output ends with `</s>`, which is scored with it: that is where generation stops.
All else is a prompt and carries no loss.

`mllm.stream.encode` reads documents with turns by it and the export of an instruct run reads
messages by it (`mllm.hf.messages`), so that both see the same token ids.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from tokenizer.specials import EOS_ID

TEMPLATE_VERSION = 1  # part of the names of measured lengths: raise it with any change

OUTPUT_ROLE = "assistant"
LABELS = {
    OUTPUT_ROLE: "Output:",
    "user": "Instruction:",
    "system": "System:",
    "developer": "System:",
    "tool": "Input:",
    "function": "Input:",
}


class Mark(Enum):
    """A special token that may stand between texts and pictures."""

    END_OF_DOCUMENT = EOS_ID  # `</s>`: ends an output; divides documents in joined rows


END_OF_DOCUMENT = Mark.END_OF_DOCUMENT


class Part(NamedTuple):
    """A text, a picture, or the end of an output."""

    content: Any  # a str; END_OF_DOCUMENT; anything else is a picture
    is_scored: bool = False  # the model is trained to predict it


class Said(NamedTuple):
    """One turn: its role, and texts and pictures in order."""

    role: str
    parts: Sequence[Part]


def instruction_template(
    turns: Iterable[Said], *, asks: bool = False, is_open: bool = False
) -> list[Part]:
    """The parts of a conversation in order. Each text is tokenised by itself.

    A prompt's label and first text are one text; pictures that come before it stand before the
    label, as they do in image-text pairs. An output's label is a text of its own and the output
    begins with a space, so that no token lies half in the prompt. Every label but the first begins
    a line, and so does a text that follows another in its turn. Texts are stripped, empty ones and
    turns without anything are left out. A role that LABELS does not know is labelled by its name.

    Args:
        turns: only the assistant's texts may be scored, where their `is_scored` says so.
        asks: an output's label follows at the end, for the model to go on from.
        is_open: the last output is not ended, for the model to go on with it.
    """
    parts: list[Part] = []
    for role, said in turns:
        label = LABELS.get(role, f"{role.capitalize()}:")
        is_output = role == OUTPUT_ROLE
        words = list(_stripped(said))
        if not words:
            continue
        if is_output:
            parts.append(Part(_begun(label, parts)))
        has_text = ends_scored = False
        for content, is_scored in words:
            if not isinstance(content, str):
                parts.append(Part(content))
                continue
            if not has_text:
                content = f" {content}" if is_output else f"{_begun(label, parts)} {content}"
            elif isinstance(parts[-1].content, str):
                content = f"\n{content}"
            has_text, ends_scored = True, is_output and is_scored
            parts.append(Part(content, ends_scored))
        if is_output:
            parts.append(Part(END_OF_DOCUMENT, ends_scored))
    if is_open and parts and parts[-1].content is END_OF_DOCUMENT:
        parts.pop()
    if asks:
        parts.append(Part(_begun(LABELS[OUTPUT_ROLE], parts)))
    return parts


def _stripped(said: Sequence[Part]) -> Iterable[Part]:
    for part in said:
        if not isinstance(part.content, str):
            yield part
        elif text := part.content.strip():
            yield part._replace(content=text)


def _begun(label: str, before: list[Part]) -> str:
    """The label, on a new line unless it is the conversation's first text."""
    return f"\n{label}" if any(isinstance(part.content, str) for part in before) else label

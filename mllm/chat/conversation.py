"""What was said: shots, turns, branches. Plain data, without a model.

A conversation is asked as (shots, system text, turns): `messages_of` gives the turns in
`transformers`' form, `mllm.chat.prompt` makes a row of tokens of the whole.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm.chat.pictures import Picture
from mllm.errors import UserError

Content = list[str | Picture]  # texts and pictures in the order in which they were given

MAIN_BRANCH = "main"


@dataclass
class Shot:
    """An exemplar: content and the answer that it is to have."""

    content: Content
    answer: str


@dataclass
class Answer:
    """What the model said, and all that decided it.

    Args:
        settings: values of `Sampling`; `seed` among them is that of this very answer.
        is_stopped: the user ended it.
        num_dropped: the conversation's when it was asked.
    """

    text: str
    settings: dict[str, Any] = field(default_factory=dict)
    is_stopped: bool = False
    num_dropped: int = 0


@dataclass
class Turn:
    """What a user gave, and the answer.

    Args:
        line: as typed, for `/edit`.
        attempt: how often the same content was asked before.
    """

    content: Content
    answer: Answer | None = None
    line: str = ""
    attempt: int = 0


@dataclass
class Conversation:
    """One branch.

    Args:
        num_dropped: oldest turns that are no longer in the prompt, though still in the transcript.
    """

    system: str = ""
    shots: list[Shot] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    num_dropped: int = 0

    @property
    def asked_turns(self) -> list[Turn]:
        """The turns that the model still sees."""
        return self.turns[self.num_dropped :]

    def undo(self) -> Turn:
        """Takes the last turn back.

        Raises:
            UserError: there is none.
        """
        if not self.turns:
            raise UserError("nothing to undo: the conversation is empty")
        turn = self.turns.pop()
        self.num_dropped = min(self.num_dropped, len(self.turns))
        return turn

    def last_picture(self) -> Picture:
        """The picture given last, in a turn or else a shot.

        Raises:
            UserError: there is none.
        """
        for holder in [*reversed(self.turns), *reversed(self.shots)]:
            for part in reversed(holder.content):
                if isinstance(part, Picture):
                    return part
        raise UserError("no picture yet: give one by its path, or by /image PATH")

    def branched(self) -> "Conversation":
        """A copy that can go another way; pictures are shared."""
        return Conversation(
            self.system,
            [Shot(list(shot.content), shot.answer) for shot in self.shots],
            [
                Turn(list(turn.content), copy.deepcopy(turn.answer), turn.line, turn.attempt)
                for turn in self.turns
            ],
            self.num_dropped,
        )


@dataclass
class Branches:
    """Conversations by name, one of them current. There is always one."""

    by_name: dict[str, Conversation] = field(default_factory=lambda: {MAIN_BRANCH: Conversation()})
    current: str = MAIN_BRANCH

    @property
    def conversation(self) -> Conversation:
        return self.by_name[self.current]

    def switch(self, name: str) -> bool:
        """Makes `name` the current branch; where it is new, a copy of the one before.

        Returns:
            Whether it is new.
        """
        is_new = name not in self.by_name
        if is_new:
            self.by_name[name] = self.conversation.branched()
        self.current = name
        return is_new

    def free_name(self) -> str:
        """A name that no branch has."""
        number = 2
        while f"branch{number}" in self.by_name:
            number += 1
        return f"branch{number}"


def messages_of(system: str, turns: Sequence[Turn | Shot]) -> list[dict[str, Any]]:
    """`transformers`' messages; a turn without an answer comes last."""
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": system})
    for turn in turns:
        messages.append({"role": "user", "content": [_item(part) for part in turn.content]})
        answer = turn.answer.text if isinstance(turn.answer, Answer) else turn.answer
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages


def _item(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": part}

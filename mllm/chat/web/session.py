"""What one browser session does to its conversation. It knows no page.

Every action is all or nothing: where it raises, the conversation stands as before.
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from mllm.candidate import CandidateScore
from mllm.chat.conversation import Answer, Branches, Content, Conversation, Shot, Turn
from mllm.chat.engine import ContextFull, Engine, Request
from mllm.chat.pictures import Picture
from mllm.chat.sampling import Sampling
from mllm.chat.transcript import Transcript, from_json, to_json
from mllm.errors import UserError

PLACE = re.compile(r"\[(\d{1,3})\]")  # of an attached picture, in a text


@dataclass(frozen=True)
class Full:
    """A turn that does not fit, and what would make it fit.

    Args:
        to_drop: the fewest oldest turns; None: no number of them is enough.
        left: positions that are left for an answer.
        is_retry: the turn is the last one again, not a new one.
    """

    error: ContextFull
    to_drop: int | None
    left: int
    is_retry: bool


@dataclass
class Session:
    """A browser session. A copy of a new one is a new one.

    Args:
        running: the answer that is being made.
        full: the choice that the reader has yet to make.
    """

    branches: Branches = field(default_factory=Branches)
    running: Request | None = None
    full: Full | None = None

    @property
    def conversation(self) -> Conversation:
        return self.branches.conversation

    def check_idle(self) -> None:
        """
        Raises:
            UserError: an answer is being made, which the rest of the conversation waits for.
        """
        if self.running is not None:
            raise UserError("an answer is being made; stop it first")

    def ask(
        self, engine: Engine, content: Content, sampling: Sampling, attempt: int = 0
    ) -> Iterator[None]:
        """One more turn; goes on whenever its answer has grown. The first time: before any of it.

        Raises:
            ContextFull: it does not fit; `full` says what would help.
            UserError: nothing is asked, or an answer is being made.
        """
        self.check_idle()
        if not content:
            raise UserError("nothing to ask: write a text, or attach a picture")
        self.full = None
        turn, conversation = Turn(content, attempt=attempt), self.conversation
        conversation.turns.append(turn)
        try:
            yield from self._answer(engine, turn, sampling, is_retry=attempt > 0)
        except BaseException:
            if turn.answer is None and turn in conversation.turns:
                conversation.turns.remove(turn)
            raise

    def retry(self, engine: Engine, sampling: Sampling) -> Iterator[None]:
        """The last turn once more, with the next seed."""
        self.check_idle()
        conversation = self.conversation
        before = conversation.num_dropped
        old = conversation.undo()
        number = len(conversation.turns)
        try:
            yield from self.ask(engine, old.content, sampling, old.attempt + 1)
        except BaseException:
            if len(conversation.turns) == number:
                conversation.turns.append(old)
                conversation.num_dropped = max(before, conversation.num_dropped)
            raise

    def _answer(
        self, engine: Engine, turn: Turn, sampling: Sampling, is_retry: bool
    ) -> Iterator[None]:
        conversation = self.conversation
        prompt = engine.encode(conversation)
        try:
            engine.check_room(prompt, sampling.max_new_tokens)
        except ContextFull as full:
            to_drop = engine.turns_to_drop(conversation, sampling.max_new_tokens)
            self.full = Full(full, to_drop, full.available - full.used, is_retry)
            raise
        sampling = replace(sampling, seed=sampling.seed + turn.attempt)
        request = self._begun(Request(prompt, sampling))
        answer = Answer(
            "",
            sampling.values,
            num_dropped=conversation.num_dropped,
            system=conversation.system,
            shots=list(conversation.shots),
        )
        try:
            yield
            for piece in engine.answer(request):
                turn.answer = answer  # what was begun is kept, whatever ends it
                answer.text += piece
                yield
            turn.answer = answer
        finally:
            answer.is_stopped = request.stopped.is_set()
            self.running = None

    def _begun(self, request: Request) -> Request:
        with _BEGINNING:
            self.check_idle()
            self.running = request
        return request

    def stop(self) -> None:
        if self.running is not None:
            self.running.stopped.set()

    def drop_oldest(self) -> None:
        """Takes the choice to leave the oldest turns out; shots stay."""
        self.check_idle()
        if self.full is not None and self.full.to_drop:
            conversation = self.conversation
            most = len(conversation.turns) - (1 if self.full.is_retry else 0)
            conversation.num_dropped = min(conversation.num_dropped + self.full.to_drop, most)

    def undo(self) -> Turn:
        self.check_idle()
        self.full = None
        return self.conversation.undo()

    def clear(self) -> None:
        """Forgets turns; shots and system text stay."""
        self.check_idle()
        self.full = None
        self.conversation.turns.clear()
        self.conversation.num_dropped = 0

    def add_shot(self, content: Content, answer: str) -> None:
        self.check_idle()
        if not content or not answer.strip():
            raise UserError("a shot is a picture or a text, and the answer to it")
        self.conversation.shots.append(Shot(content, answer.strip()))

    def remove_shot(self, place: int) -> None:
        self.check_idle()
        if not 0 <= place < len(self.conversation.shots):
            raise UserError("that shot is no longer there")
        self.conversation.shots.pop(place)

    def rank(self, engine: Engine, content: Content, line: str) -> list[CandidateScore]:
        """Candidates as answers to `content`, or where that is empty to the last turn."""
        self.check_idle()
        conversation = self.conversation.branched()
        if content:
            conversation.turns.append(Turn(content))
        elif conversation.asked_turns:
            conversation.turns[-1].answer = None  # they stand in its place
        return engine.rank(conversation, line.split("|"))

    def to_text(self, engine: Engine, sampling: Sampling) -> str:
        """The transcript's file."""
        made = Transcript(branches=self.branches, settings=sampling, model=engine.description)
        return json.dumps(to_json(made), indent=1)

    def take(self, data: bytes, name: str) -> Transcript:
        """Goes on from a transcript's file."""
        self.check_idle()
        transcript = from_json(data, name)
        self.branches, self.full = transcript.branches, None
        return transcript


# Two events of one page may come at once; kept outside, since a lock cannot be copied.
_BEGINNING = threading.Lock()


def placed(text: str, pictures: Sequence[Picture]) -> Content:
    """Text and pictures in order: `[2]` in a text stands for the second picture.

    Pictures that the text does not name come first. A number without a picture stays text.
    """
    named: set[int] = set()
    parts: Content = []
    end = 0
    for match in PLACE.finditer(text):
        number = int(match[1])
        if not 1 <= number <= len(pictures):
            continue
        named.add(number)
        parts += [text[end : match.start()].strip(), pictures[number - 1]]
        end = match.end()
    parts.append(text[end:].strip())
    first: Content = [p for number, p in enumerate(pictures, 1) if number not in named]
    return first + [part for part in parts if part]

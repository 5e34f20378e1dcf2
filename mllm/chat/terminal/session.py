"""A chat in the terminal: what each command does to the conversation."""

import re
import shlex
import signal
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

from mllm.candidate import shares
from mllm.chat.conversation import Answer, Branches, Content, Conversation, Turn
from mllm.chat.lines import ARROW, IMAGE_COMMAND, LineReader
from mllm.chat.prompt import DESCRIBE, usage_of
from mllm.chat.room import WHEN_FULL, Choose, WhenFull, made_to_fit
from mllm.chat.sampling import Sampling
from mllm.chat.terminal.loading import LoadingEngine
from mllm.chat.terminal.view import View, counted, stats_line
from mllm.chat.text import printable_lines, whole
from mllm.chat.transcript import Transcript, load, save
from mllm.command import printable
from mllm.errors import UserError

SHOT_USAGE = "/shot needs both sides: /shot PATH [TEXT] => ANSWER"
RANK_USAGE = "/rank needs candidates: /rank red | green | blue, or /rank TEXT => red | green"


class Session:
    """The state of a chat and its commands. Mistakes are `UserError`s and change nothing.

    Args:
        loading: the engine, waited for when it is first needed.
        choose: asks the user for one of several letters; None where nobody can be asked.
        when_full: what to do where a prompt outgrows the context.
        shows_stats: print speed after each answer.
    """

    def __init__(
        self,
        loading: LoadingEngine,
        view: View,
        reader: LineReader,
        sampling: Sampling | None = None,
        choose: Choose | None = None,
        when_full: WhenFull = "ask",
        shows_stats: bool = False,
    ) -> None:
        self.loading, self.view, self.reader = loading, view, reader
        self.sampling = sampling or Sampling()
        self.choose, self.when_full, self.shows_stats = choose, when_full, shows_stats
        self.branches = Branches()
        self.held: Content = []  # pictures that the next line begins with
        self.prefill = ""  # what the next line begins as
        self._is_editing = False

    @property
    def conversation(self) -> Conversation:
        return self.branches.conversation

    def engine(self) -> Any:
        """The engine; a spinner turns until it is loaded."""
        if not self.loading.is_ready:
            with self.view.waiting("loading the model"):
                return self.loading.get()
        return self.loading.get()

    # Turns

    def say(self, line: str) -> None:
        """A line of text and pictures, or `/image PATH [TEXT]`."""
        is_editing = self._is_editing
        try:
            content = [*self.held, *self.reader.turn(line)]
            if content:
                self._ask_instead(content, line) if is_editing else self.ask(content, line)
        except BaseException:
            if is_editing:
                self.prefill = line  # to be mended: it still stands for the last turn
            raise
        self._is_editing, self.held = False, []

    def image(self, rest: str) -> None:
        self.say(f"{IMAGE_COMMAND} {rest}")

    def ask(self, content: Content, line: str = "", attempt: int = 0) -> None:
        """One more turn, answered and printed."""
        self.view.pictures(content)
        turn = Turn(content, line=line, attempt=attempt)
        conversation = self.conversation
        before = conversation.num_dropped
        conversation.turns.append(turn)
        try:
            self._answer(turn)
        except BaseException:
            if turn.answer is None:
                conversation.turns.remove(turn)
                conversation.num_dropped = before
            raise

    def _ask_instead(self, content: Content, line: str, attempt: int = 0) -> None:
        """Asks in the last turn's place, which stands again where that fails."""
        number, before = len(self.conversation.turns), self.conversation.num_dropped
        old = self.conversation.undo()
        try:
            self.ask(content, line, attempt)
        except BaseException:
            if len(self.conversation.turns) < number:  # the new turn is gone again
                self.conversation.turns.append(old)
                self.conversation.num_dropped = before
            raise

    def _answer(self, turn: Turn) -> None:
        from mllm.chat.engine import Request

        engine, conversation = self.engine(), self.conversation
        sampling, to_drop = made_to_fit(
            engine, conversation, self.sampling, self.when_full, self.choose
        )
        if to_drop:
            conversation.num_dropped += to_drop
            self._tell_dropped()
        sampling = replace(sampling, seed=sampling.seed + turn.attempt)
        request = Request(engine.encode(conversation), sampling)
        answer = Answer(
            "",
            sampling.values,
            num_dropped=conversation.num_dropped,
            system=conversation.system,
            shots=list(conversation.shots),
        )
        is_over = False
        with _interrupts_set(request.stopped):
            try:
                for piece in engine.answer(request):
                    turn.answer = answer  # what was begun is kept, whatever ends it
                    answer.text += piece
                    self.view.piece(piece)
                turn.answer, is_over = answer, True
            finally:
                answer.is_stopped = request.stopped.is_set() or not is_over
                if turn.answer is not None:
                    self.view.end_answer(answer.is_stopped)
        if self.shows_stats:
            self.view.note(stats_line(request.stats), style="dim")

    def _tell_dropped(self) -> None:
        conversation = self.conversation
        said = counted(len(conversation.turns), "turn")
        self.view.note(f"{conversation.num_dropped} of {said} left out now")

    def drop(self, rest: str) -> None:
        conversation = self.conversation
        if rest == "0":
            conversation.num_dropped = 0
        else:
            number = _number(rest or "1", "/drop", "/drop 2, or 0 for all turns again")
            if number > len(conversation.asked_turns):
                there = counted(len(conversation.asked_turns), "turn")
                raise UserError(f"/drop {number}: {there} there")
            conversation.num_dropped += number
        self._tell_dropped()

    def retry(self, rest: str) -> None:
        if not self.conversation.turns:
            raise UserError("nothing to try again: the conversation is empty")
        if self.sampling.temperature == 0:
            self.view.note("temperature 0 gives the same answer; /set temperature 0.7 varies it")
        turn = self.conversation.turns[-1]
        self._ask_instead(turn.content, turn.line, turn.attempt + 1)

    def undo(self, rest: str) -> None:
        number = _number(rest or "1", "/undo", "/undo 2")
        if number > len(self.conversation.turns):
            raise UserError(
                f"/undo {number}: {counted(len(self.conversation.turns), 'turn')} there"
            )
        for _ in range(number):
            turn = self.conversation.undo()
            self.view.note(f"taken back: {self._words(turn.content)}")

    def edit(self, rest: str) -> None:
        if not self.conversation.turns:
            raise UserError("nothing to edit: the conversation is empty")
        turn = self.conversation.turns[-1]
        if rest:
            self._ask_instead(self.reader.turn(rest), rest)
        elif self.choose is None or not turn.line:  # of a transcript: its pictures have no paths
            raise UserError("/edit needs the new line here: /edit TEXT")
        else:
            self.prefill, self._is_editing = turn.line, True

    def leave_editing(self) -> None:
        """Another command, or an empty line, was given instead of the edited one."""
        self._is_editing, self.prefill = False, ""

    def describe(self, rest: str) -> None:
        if rest:
            picture, _ = self.reader.named_picture(rest, "/describe [PATH]")
        else:
            picture = self.conversation.last_picture()
        is_completion = self.engine().template == "completion"
        # A picture alone: the template adds `An image of`.
        content: Content = [picture] if is_completion else [picture, DESCRIBE]
        self.ask(content, f"{IMAGE_COMMAND} {shlex.quote(picture.name)}")

    def rank(self, rest: str) -> None:
        asked, arrow, candidates = rest.rpartition(ARROW)
        texts = [text.strip() for text in candidates.split("|")]
        if len(texts) < 2 or not all(texts):
            raise UserError(RANK_USAGE)
        conversation = self.conversation.branched()
        if arrow and asked.strip():
            conversation.turns.append(Turn(self.reader.content(asked.strip())))
        elif arrow:
            raise UserError(RANK_USAGE)
        elif conversation.asked_turns:
            last = conversation.turns[-1]
            conversation.turns[-1] = Turn(last.content)  # in the place of the answer that was given
        else:
            raise UserError(
                "/rank ranks answers to your last turn, and there is none; " + RANK_USAGE
            )
        scores = self.engine().rank(conversation, texts)
        self.view.candidates(scores, shares(scores))

    # Shots, system text, settings

    def shot(self, rest: str) -> None:
        shot = self.reader.shot(rest, SHOT_USAGE)
        self.view.pictures(shot.content)
        self.conversation.shots.append(shot)
        self.view.note(
            f"shot {len(self.conversation.shots)}: {self._words(shot.content)} "
            f"{ARROW} {shot.answer}"
        )

    def shots(self, rest: str) -> None:
        shots = self.conversation.shots
        word, _, number = rest.partition(" ")
        if word == "clear":
            shots.clear()
            self.view.note("no shots")
        elif word == "drop":
            place = _number(number, "/shots drop", "/shots drop 1")
            if place > len(shots):
                raise UserError(f"/shots drop {place}: {counted(len(shots), 'shot')} there")
            shots.pop(place - 1)
            self.view.note(counted(len(shots), "shot"))
        elif word:
            raise UserError("/shots lists; /shots drop NUMBER, /shots clear")
        elif not shots:
            self.view.note("no shots; /shot PATH => ANSWER adds one")
        for place, shot in enumerate(shots if not word else (), 1):
            self.view.note(f"{place}: {self._words(shot.content)} {ARROW} {shot.answer}")

    def system(self, rest: str) -> None:
        if rest:
            self.conversation.system = "" if rest == "clear" else whole(rest)
        told = self.conversation.system
        self.view.note(f"system: {told}" if told else "no system text; /system TEXT sets one")

    def set(self, rest: str) -> None:
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        value = value.strip()
        if not name:
            for key, known in self.sampling.values.items():
                self.view.note(f"{key} {known:g}" if isinstance(known, float) else f"{key} {known}")
            self.view.note(f"when_full {self.when_full}")
        elif not value:
            raise UserError(f"/set {name} needs a value; /set alone lists all")
        elif name == "when_full":
            if value not in WHEN_FULL:
                raise UserError(f"when_full {value!r}: one of {', '.join(WHEN_FULL)}")
            self.when_full = value  # type: ignore[assignment]
        else:
            self.sampling = self.sampling.with_text(name, value)

    def tokens(self, rest: str) -> None:
        engine = self.engine()
        usage = usage_of(self.conversation, engine.processor)
        self.view.usage(usage, engine.max_positions, self.sampling.max_new_tokens)

    def stats(self, rest: str) -> None:
        if rest not in ("", "on", "off"):
            raise UserError("/stats on or /stats off")
        self.shows_stats = rest == "on" if rest else not self.shows_stats
        self.view.note(f"speed after each answer: {'on' if self.shows_stats else 'off'}")

    # Branches and files

    def branch(self, rest: str) -> None:
        if len(rest.split()) > 1:
            raise UserError("/branch NAME: a name is one word")
        name = rest or self.branches.free_name()
        is_new = self.branches.switch(name)
        self.view.note(
            f"{'a copy, ' if is_new else ''}branch {printable(name)}: "
            f"{counted(len(self.conversation.turns), 'turn')}"
        )

    def list_branches(self, rest: str) -> None:
        for name, conversation in self.branches.by_name.items():
            mark = "*" if name == self.branches.current else " "
            self.view.note(
                f"{mark} {printable(name)}: {counted(len(conversation.turns), 'turn')}, "
                f"{counted(len(conversation.shots), 'shot')}"
            )

    def show(self, rest: str) -> None:
        conversation = self.conversation
        if conversation.system:
            self.view.say("system", conversation.system)
        for shot in conversation.shots:
            self.view.say("shot", [*shot.content, ARROW, shot.answer])
        for place, turn in enumerate(conversation.turns):
            role = "(you)" if place < conversation.num_dropped else "you"
            self.view.say(role, turn.content)
            if turn.answer is not None:
                self.view.say("model", turn.answer.text)

    def save(self, rest: str) -> None:
        if not rest:
            raise UserError("/save needs a file: /save chat.json")
        path = self.reader.path(rest)
        made = Transcript(
            branches=self.branches, settings=self.sampling, model=self.engine().description
        )
        self.view.note(f"saved to {printable(str(save(made, path)))}")

    def load(self, rest: str) -> None:
        if not rest:
            raise UserError("/load needs a file: /load chat.json")
        self.take(load(self.reader.path(rest)))

    def take(self, transcript: Transcript) -> None:
        """Goes on from a transcript."""
        self.branches, self.sampling = transcript.branches, transcript.settings
        conversation = self.conversation
        self.view.note(
            f"{counted(len(conversation.turns), 'turn')}, "
            f"{counted(len(conversation.shots), 'shot')}; "
            "/show prints them"
        )
        made_by = transcript.model.get("fingerprint")
        if made_by and made_by != self.engine().fingerprint:
            name = printable(transcript.model.get("name", ""))
            self.view.note(f"another model answered in it ({name}, {printable(made_by)})")

    def reset(self, rest: str) -> None:
        self.branches = Branches()
        self.view.note("A new conversation.")

    def _words(self, content: Content) -> str:
        words = [part if isinstance(part, str) else f"<{part.label}>" for part in content]
        return printable_lines(" ".join(words))


def _number(text: str, name: str, example: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise UserError(f"{name} takes a number from 1, such as {example}")
    return int(text)


@contextmanager
def _interrupts_set(stopped: Event) -> Any:
    """Ctrl-C sets `stopped`; a second one leaves.

    A flag, since a KeyboardInterrupt is lost where it meets an import or a callback of a library.
    """

    def on_interrupt(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

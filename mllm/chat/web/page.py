"""What each part of the page does to the session."""

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from mllm.candidate import shares
from mllm.chat.conversation import Content
from mllm.chat.engine import ContextFull, Engine, Request
from mllm.chat.pictures import Picture, read_picture
from mllm.chat.prompt import usage_of
from mllm.chat.sampling import Sampling
from mllm.chat.web import show
from mllm.chat.web.parts import DOWNLOADS, Parts
from mllm.chat.web.session import Session, placed
from mllm.command import printable
from mllm.errors import UserError

SHOWN_SECONDS = 0.06  # between two sights of a growing answer
MAX_AT_ONCE = 8  # events of a kind; each holds one of gradio's 40 threads
MAX_QUEUE = 64  # events that wait
KEPT = (3600, 86400)  # seconds between looks at uploads, and their longest life

Updates = dict[Any, Any]


class Page:
    """One page for all sessions.

    Args:
        sampling: what the controls begin with.
        folder: where thumbnails go; the page may read it.
    """

    def __init__(self, engine: Engine, first: Session, sampling: Sampling, folder: Path) -> None:
        self.engine, self.sampling = engine, sampling
        self.thumbnails = show.Thumbnails(folder)
        self._running: dict[str | None, Request] = {}  # by gradio's name of the session
        name = engine.description["name"]
        with gr.Blocks(
            title=f"{name} · mllm chat", analytics_enabled=False, delete_cache=KEPT
        ) as self.blocks:
            self.session = gr.State(first)
            self.parts = Parts(engine, first.conversation.system, sampling)
            self._wire()
        self.blocks.queue(default_concurrency_limit=MAX_AT_ONCE, max_size=MAX_QUEUE)

    def _wire(self) -> None:
        parts = self.parts
        settings = [self.session, parts.system, *parts.controls]

        def on(event: Any, work: Any, *inputs: Any, outputs: Any = None) -> Any:
            return event(
                work,
                [*settings, *inputs],
                parts.shown if outputs is None else outputs,
                show_progress="hidden",
                api_visibility="private",
            )

        on(self.blocks.load, self._on_load)
        on(parts.box.submit, self._on_ask, parts.box)
        on(parts.drop.click, self._on_drop, parts.box)
        on(parts.shorten.click, self._on_shorten, parts.box)
        on(parts.cancel.click, self._on_cancel)
        on(parts.stop.click, self._on_stop, outputs=[])
        on(parts.retry.click, self._on_retry)
        on(parts.undo.click, self._on_undo)
        on(parts.clear.click, self._on_clear)
        on(parts.add_shot.click, self._on_add_shot, parts.shot_box, parts.shot_answer)
        on(parts.shot_answer.submit, self._on_add_shot, parts.shot_box, parts.shot_answer)
        on(parts.shots.select, self._on_remove_shot)
        on(parts.system.blur, self._on_settings)
        on(parts.longest.change, self._on_settings)
        for event in (parts.rank.click, parts.candidates.submit):
            on(event, self._on_rank, parts.candidates, parts.box)
        saved = on(parts.save.click, self._on_save)
        saved.then(
            None, [parts.transcript], [parts.transcript], js=DOWNLOADS, api_visibility="private"
        )
        on(parts.load.upload, self._on_take, parts.load)
        self.blocks.unload(self._on_unload)

    # What is seen

    def _seen(self, session: Session, longest: Any = None) -> Updates:
        """All that follows from the session's state."""
        is_running = session.running is not None
        conversation = session.conversation
        wanted = longest if isinstance(longest, int) and longest > 0 else 0
        usage = usage_of(conversation, self.engine.processor)
        updates: Updates = {
            self.parts.turns: show.turns(conversation, self.thumbnails),
            self.parts.answer: show.last_answer(conversation, is_running),
            self.parts.meter: show.meter(usage, self.engine.max_positions, wanted),
            self.parts.shots: show.shots(conversation, self.thumbnails),
            self.parts.stop: gr.update(interactive=is_running),
            **{
                button: gr.update(interactive=not is_running and bool(conversation.turns))
                for button in (self.parts.retry, self.parts.undo, self.parts.clear)
            },
            self.parts.full: gr.update(visible=session.full is not None),
        }
        if (full := session.full) is not None:
            turns = "oldest turn" if full.to_drop == 1 else f"oldest {full.to_drop} turns"
            updates |= {
                self.parts.full_words: show.full_words(full),
                self.parts.drop: gr.update(
                    value=f"Leave the {turns} out, keep shots", visible=bool(full.to_drop)
                ),
                self.parts.shorten: gr.update(
                    value=f"Shorten this answer to {full.left} tokens", visible=full.left > 0
                ),
            }
        return updates

    def _notice(self, text: str, kind: str = "error") -> Updates:
        return {self.parts.notice: gr.update(value=show.notice(text, kind), visible=bool(text))}

    # What is done. Each handler is given the session, the system text and the six controls.

    def _on_load(self, session: Session, system: str, *controls: Any) -> Updates:
        return self._seen(session, controls[4])

    def _on_settings(self, session: Session, system: str, *controls: Any) -> Updates:
        if session.running is None:
            session.conversation.system = system.strip()
        return {self.parts.meter: self._seen(session, controls[4])[self.parts.meter]}

    def _on_ask(
        self, request: gr.Request, session: Session, system: str, *rest: Any
    ) -> Iterator[Updates]:
        *controls, box = rest

        def begin() -> Iterator[None]:
            session.check_idle()
            sampling = self._settled(session, system, controls)
            return session.ask(self.engine, self._content(box), sampling)

        yield from self._answered(request, session, begin, controls, box)

    def _on_retry(
        self, request: gr.Request, session: Session, system: str, *controls: Any
    ) -> Iterator[Updates]:
        def begin() -> Iterator[None]:
            session.check_idle()
            return session.retry(self.engine, self._settled(session, system, controls))

        note = "" if controls[0] else "Temperature 0 gives the same answer; a higher one varies it."
        yield from self._answered(request, session, begin, controls, note=note)

    def _on_drop(
        self, request: gr.Request, session: Session, system: str, *rest: Any
    ) -> Iterator[Updates]:
        yield from self._again(request, session, system, rest, session.drop_oldest)

    def _on_shorten(
        self, request: gr.Request, session: Session, system: str, *rest: Any
    ) -> Iterator[Updates]:
        left = session.full.left if session.full else 0
        if left > 0:
            rest = (*rest[:4], left, *rest[5:])
        yield from self._again(request, session, system, rest, lambda: None)

    def _again(
        self, request: gr.Request, session: Session, system: str, rest: Any, make_room: Any
    ) -> Iterator[Updates]:
        """Asks what did not fit once more, after room was made."""
        full = session.full
        if full is None:
            yield self._seen(session, rest[4])
            return
        try:
            make_room()
        except UserError as error:
            yield self._notice(str(error))
            return
        if full.is_retry:
            yield from self._on_retry(request, session, system, *rest[:-1])
        else:
            yield from self._on_ask(request, session, system, *rest)

    def _answered(
        self,
        request: gr.Request,
        session: Session,
        begin: Any,
        controls: Sequence[Any],
        box: Any = None,
        note: str = "",
    ) -> Iterator[Updates]:
        """Shows an answer as it grows.

        Args:
            begin: gives `Session.ask` or the like.
            box: what was asked; emptied once it is in the conversation.
        """
        try:
            answering = begin()
            next(answering)
            if session.running is not None:
                self._running[request.session_hash] = session.running
            first = self._seen(session, controls[4]) | self._notice(note, "note")
            if box is not None:
                first[self.parts.box] = {"text": "", "files": []}
            yield first
            shown = time.monotonic()
            for _ in answering:
                if time.monotonic() - shown > SHOWN_SECONDS:
                    yield {
                        self.parts.answer: show.last_answer(session.conversation, is_running=True)
                    }
                    shown = time.monotonic()
            yield self._seen(session, controls[4])
        except ContextFull:
            yield self._seen(session, controls[4]) | self._notice("")
        except UserError as error:
            yield self._seen(session, controls[4]) | self._notice(str(error))
        except Exception as error:
            traceback.print_exc()
            words = f"The answer failed ({type(error).__name__}); the server printed why."
            yield self._seen(session, controls[4]) | self._notice(words)
        finally:
            self._running.pop(request.session_hash, None)

    def _on_stop(self, session: Session, *settings: Any) -> None:
        session.stop()

    def _on_unload(self, request: gr.Request) -> None:
        """The reader went away: nobody waits for the answer."""
        if running := self._running.get(request.session_hash):
            running.stopped.set()

    def stop_all(self) -> None:
        for running in list(self._running.values()):
            running.stopped.set()

    def _on_cancel(self, session: Session, system: str, *controls: Any) -> Updates:
        session.full = None
        return self._seen(session, controls[4]) | self._notice("")

    def _on_undo(self, session: Session, system: str, *controls: Any) -> Updates:
        return self._done(session, controls, session.undo)

    def _on_clear(self, session: Session, system: str, *controls: Any) -> Updates:
        return self._done(session, controls, session.clear)

    def _on_add_shot(self, session: Session, system: str, *rest: Any) -> Updates:
        *controls, box, answer = rest
        updates = self._done(
            session, controls, lambda: session.add_shot(self._content(box), answer or "")
        )
        if not updates[self.parts.notice]["visible"]:
            updates |= {self.parts.shot_box: {"text": "", "files": []}, self.parts.shot_answer: ""}
        return updates

    def _on_remove_shot(
        self, event: gr.EventData, session: Session, system: str, *controls: Any
    ) -> Updates:
        place = event._data.get("place")
        number = place if isinstance(place, int) else -1
        return self._done(session, controls, lambda: session.remove_shot(number))

    def _done(self, session: Session, controls: Sequence[Any], work: Any) -> Updates:
        """Does it and shows what came of it."""
        try:
            work()
        except UserError as error:
            return self._seen(session, controls[4]) | self._notice(str(error))
        return self._seen(session, controls[4]) | self._notice("")

    def _on_rank(self, session: Session, system: str, *rest: Any) -> Updates:
        *_, line, box = rest
        try:
            session.check_idle()
            session.conversation.system = system.strip()
            scores = session.rank(self.engine, self._content(box), line or "")
        except UserError as error:
            return {self.parts.ranking: ""} | self._notice(str(error))
        return {self.parts.ranking: show.ranking(scores, shares(scores))} | self._notice("")

    def _on_save(self, session: Session, system: str, *controls: Any) -> Updates:
        try:
            session.check_idle()
            sampling = self._settled(session, system, controls)
        except UserError as error:
            return {self.parts.transcript: ""} | self._notice(str(error))
        return {self.parts.transcript: session.to_text(self.engine, sampling)} | self._notice("")

    def _on_take(self, session: Session, system: str, *rest: Any) -> Updates:
        *_, path = rest
        try:
            transcript = session.take(Path(path).read_bytes(), printable(Path(path).name))
        except UserError as error:
            return self._notice(str(error))
        made_by = transcript.model.get("fingerprint")
        is_other = bool(made_by) and made_by != self.engine.fingerprint
        name = transcript.model.get("name", "")
        note = f"Another model answered in it ({name}, {made_by})." if is_other else ""
        values = transcript.settings.values
        return {
            **self._seen(session, values["max_new_tokens"]),
            **self._notice(note, "note"),
            self.parts.system: session.conversation.system,
            **dict(zip(self.parts.controls, values.values(), strict=True)),
        }

    def _settled(self, session: Session, system: str, controls: Sequence[Any]) -> Sampling:
        """Takes the page's system text; gives its settings."""
        values = dict(zip(self.sampling.values, controls, strict=True))
        for name, value in values.items():
            if value is None:
                raise UserError(f"{name} is empty")
        session.conversation.system = system.strip()
        return Sampling(**values)

    def _content(self, box: Any) -> Content:
        pictures: list[Picture] = []
        for path in box["files"]:
            try:
                pictures.append(_named(read_picture(path)))
            except UserError as error:
                # The reader knows the file by its name, not by where it was put.
                raise UserError(str(error).replace(path, Path(path).name)) from None
        return placed(box["text"] or "", pictures)


def _named(picture: Picture) -> Picture:
    """With the file's name alone, not its place on this machine."""
    return replace(picture, name=Path(picture.name).name)

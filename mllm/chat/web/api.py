"""/v1/models and /v1/chat/completions, as OpenAI's clients ask for them.

Each request is a conversation of its own; what requests share is in the engine's prefix cache.
"""

import asyncio
import json
import secrets
import threading
import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from mllm.chat import engine as engines
from mllm.chat.sampling import Sampling
from mllm.chat.web.asked import Asked, read_asked
from mllm.chat.web.guard import COMPLETIONS
from mllm.chat.web.refusal import Refusal, error_body
from mllm.chat.web.stops import Stops

GONE_SECONDS = 0.1  # between looks at whether the client is still there


def router(engine: engines.Engine, defaults: Sampling) -> APIRouter:
    """
    Args:
        defaults: settings of requests that name none.
    """
    routes = APIRouter()
    name = engine.description["name"]
    model = {
        "id": name,
        "object": "model",
        "created": int(engine.model_dir.stat().st_mtime),
        "owned_by": "mllm",
        "max_model_len": engine.max_positions,
    }

    @routes.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [model]}

    @routes.get("/v1/models/{asked_name:path}")
    async def one_model(asked_name: str) -> Any:
        if asked_name == name:
            return model
        message = f"no model {asked_name!r}; here is {name!r}"
        return JSONResponse(error_body(message, "model", "model_not_found", 404), 404)

    @routes.post(COMPLETIONS)
    async def completions(request: Request) -> Any:
        body = await request.body()
        try:
            asked, wanted = await asyncio.to_thread(_wanted, engine, body, defaults, name)
        except Refusal as refusal:
            return JSONResponse(refusal.body, refusal.status)
        reply = Reply(engine, wanted, asked, name)
        if asked.streams:
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return StreamingResponse(
                reply.events(request), media_type="text/event-stream", headers=headers
            )
        return await reply.whole(request)

    return routes


def _wanted(
    engine: engines.Engine, body: bytes, defaults: Sampling, name: str
) -> tuple[Asked, engines.Request]:
    available = engine.max_positions
    each = engine.processor.num_latents + 2
    asked = read_asked(body, defaults, name, None if available is None else available // each)
    prompt = engine.encode(asked.conversation)
    try:
        engine.check_room(prompt, asked.sampling.max_new_tokens)
    except engines.ContextFull as full:
        pictures = f", of which pictures {len(prompt.pictures)} x {each}" if prompt.pictures else ""
        raise Refusal(
            f"This model's maximum context length is {full.available} tokens, but "
            f"{full.used + full.wanted} were asked for ({full.used} in the messages{pictures}; "
            f"{full.wanted} for the answer).",
            "messages",
            "context_length_exceeded",
        ) from None
    return asked, engines.Request(prompt, asked.sampling)


@dataclass
class Reply:
    """One answer on its way to a client. A client that goes away ends it at its next token."""

    engine: engines.Engine
    request: engines.Request
    asked: Asked
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    is_at_stop: bool = False

    async def whole(self, client: Request) -> JSONResponse:
        try:
            text = "".join([piece async for piece in self._texts(client)])
        except Exception as error:
            return JSONResponse(error_body(_told(error), status=500), 500)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": self._finish_reason,
        }
        value = {**self._head("chat.completion"), "choices": [choice], "usage": self._usage}
        return JSONResponse(value)

    async def events(self, client: Request) -> AsyncIterator[str]:
        """Server-sent events: the role, pieces of text, the reason of the end, `[DONE]`."""
        yield self._event([self._choice({"role": "assistant", "content": ""})])
        try:
            async for text in self._texts(client):
                yield self._event([self._choice({"content": text})])
        except Exception as error:
            yield f"data: {json.dumps(error_body(_told(error), status=500))}\n\n"
            return
        yield self._event([self._choice({}, self._finish_reason)])
        if self.asked.includes_usage:
            yield self._event([], self._usage)
        yield "data: [DONE]\n\n"

    async def _texts(self, client: Request) -> AsyncIterator[str]:
        """The answer up to its stop, never an empty text."""
        stops = Stops(self.asked.stops)
        watching = asyncio.create_task(self._watch(client))
        try:
            async for piece in pieces_of(self.engine, self.request):
                if text := stops.feed(piece):
                    yield text
                if stops.is_over:
                    self.is_at_stop = True
                    self.request.stopped.set()  # and reads on to the end, for the counts
            if text := stops.end():
                yield text
        finally:
            watching.cancel()
            self.request.stopped.set()

    async def _watch(self, client: Request) -> None:
        while not await client.is_disconnected():
            await asyncio.sleep(GONE_SECONDS)
        self.request.stopped.set()

    @property
    def _finish_reason(self) -> str:
        return "length" if self.request.stats.is_capped and not self.is_at_stop else "stop"

    @property
    def _usage(self) -> dict[str, Any]:
        stats = self.request.stats
        return {
            "prompt_tokens": stats.num_prompt,
            "completion_tokens": stats.num_new,
            "total_tokens": stats.num_prompt + stats.num_new,
            "prompt_tokens_details": {"cached_tokens": stats.num_reused},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _event(self, choices: list[Any], usage: dict[str, Any] | None = None) -> str:
        value = {**self._head("chat.completion.chunk"), "choices": choices}
        if self.asked.includes_usage:
            value["usage"] = usage
        return f"data: {json.dumps(value)}\n\n"


def _told(error: Exception) -> str:
    traceback.print_exception(error)
    return f"the answer failed ({type(error).__name__})"


async def pieces_of(engine: engines.Engine, request: engines.Request) -> AsyncIterator[str]:
    """`engine.answer` for an event loop; leaving it early stops the answer."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

    def put(item: str | BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(pieces.put_nowait, item)

    def work() -> None:
        try:
            for piece in engine.answer(request):
                put(piece)
        except BaseException as error:
            put(error)
        else:
            put(None)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := await pieces.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        request.stopped.set()

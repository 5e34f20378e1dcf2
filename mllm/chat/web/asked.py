"""A body of /v1/chat/completions as conversation, settings and stops.

Parameters without a meaning here are ignored where an answer is none the worse for it; those that
ask for another kind of answer are refused, since a client could not tell that they were.
"""

import base64
import binascii
import json
import secrets
from dataclasses import dataclass, replace
from typing import Any

from mllm.chat.conversation import Answer, Content, Conversation, Turn
from mllm.chat.pictures import picture_of
from mllm.chat.sampling import MAX_SEED, Sampling
from mllm.chat.web.refusal import Refusal
from mllm.errors import UserError

MAX_STOPS = 4

# Values of parameters that are as good as none.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "best_of": (1,),
    "echo": (False,),
}


@dataclass(frozen=True)
class Asked:
    """What a client wants."""

    conversation: Conversation
    sampling: Sampling
    stops: tuple[str, ...]
    streams: bool
    includes_usage: bool


def read_asked(body: bytes, defaults: Sampling, name: str, max_pictures: int | None) -> Asked:
    """
    Args:
        defaults: settings that the body leaves out.
        name: the model's.
        max_pictures: more cannot fit; checked before any is decoded.

    Raises:
        Refusal: the body asks for what is not served.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Refusal("the body must be a JSON object")
    model = value.get("model")
    if model is not None and model != name:
        raise Refusal(f"no model {model!r}; here is {name!r}", "model", "model_not_found", 404)
    for key, harmless in HARMLESS.items():
        if value.get(key) is not None and value[key] not in harmless:
            raise Refusal(f"{key} {_short(value[key])} is not supported", key, "unsupported_value")
    streams = _flag(value, "stream")
    options = value.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refusal("stream_options must be an object", "stream_options")
    if options and not streams:
        raise Refusal('stream_options needs "stream": true', "stream_options")
    return Asked(
        conversation=_conversation(value.get("messages"), max_pictures),
        sampling=_sampling(value, defaults),
        stops=_stops(value.get("stop")),
        streams=streams,
        includes_usage=_flag(options, "include_usage"),
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _flag(value: dict[str, Any], key: str) -> bool:
    flag = value.get(key)
    if flag is not None and not isinstance(flag, bool):
        raise Refusal(f"{key} must be true or false", key)
    return bool(flag)


def _stops(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list)
        or len(texts) > MAX_STOPS
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise Refusal(f"stop must be a text or a list of up to {MAX_STOPS}, none empty", "stop")
    return tuple(texts)


def _sampling(value: dict[str, Any], defaults: Sampling) -> Sampling:
    key = "max_tokens" if value.get("max_completion_tokens") is None else "max_completion_tokens"
    changes = {
        name: value[given]
        for name, given in (
            ("temperature", "temperature"),
            ("top_p", "top_p"),
            ("top_k", "top_k"),
            ("max_new_tokens", key),
        )
        if value.get(given) is not None
    }
    for name, given in changes.items():
        is_whole = name in ("top_k", "max_new_tokens")
        if isinstance(given, bool) or not isinstance(given, int if is_whole else int | float):
            param = key if name == "max_new_tokens" else name
            raise Refusal(f"{param} must be a {'whole ' if is_whole else ''}number", param)
    if changes.get("temperature"):
        changes["beams"] = 1
    seed = value.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise Refusal("seed must be a whole number", "seed")
    # A client that names no seed expects another answer each time.
    changes["seed"] = secrets.randbelow(1 << 31) if seed is None else seed % (MAX_SEED + 1)
    try:
        return replace(defaults, **changes)
    except UserError as error:
        name = str(error).split()[0]
        param = key if name == "max_new_tokens" else name
        raise Refusal(str(error).replace("max_new_tokens", key, 1), param) from None


def _conversation(messages: Any, max_pictures: int | None) -> Conversation:
    """Messages as turns; neighbours of one role become one."""
    if not isinstance(messages, list) or not messages:
        raise Refusal("messages must be a list with at least one message", "messages")
    num_pictures = 0
    conversation = Conversation()
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        if not isinstance(message, dict):
            raise Refusal(f"{place} must be an object", place)
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise Refusal(
                f"{place}: role {_short(role)} is not supported; system, user, assistant are",
                f"{place}.role",
            )
        if message.get("tool_calls") or message.get("function_call") or message.get("audio"):
            raise Refusal(f"{place}: tool calls and audio are not supported", place)
        if role == "user":
            items = _items(message, place, allows_pictures=True)
            num_pictures += sum(kind == "image" for kind, _ in items)
            if max_pictures is not None and num_pictures > max_pictures:
                raise Refusal(
                    f"{num_pictures} pictures up to {place}; the model's context has room for "
                    f"{max_pictures}",
                    "messages",
                    "context_length_exceeded",
                )
            content: Content = [
                _picture(text, place) if kind == "image" else text for kind, text in items
            ]
            if conversation.turns and conversation.turns[-1].answer is None:
                conversation.turns[-1].content += content
            else:
                conversation.turns.append(Turn(content))
            continue
        text = "\n".join(text for _, text in _items(message, place, allows_pictures=False))
        if role == "assistant":
            _add_answer(conversation, text, place)
        elif conversation.turns:
            raise Refusal(f"{place}: system messages stand before all others", f"{place}.role")
        else:
            conversation.system = f"{conversation.system}\n{text}".strip()
    if not conversation.turns or conversation.turns[-1].answer is not None:
        raise Refusal("the last message must be the user's", "messages")
    return conversation


def _add_answer(conversation: Conversation, text: str, place: str) -> None:
    if not conversation.turns:
        raise Refusal(f"{place}: the assistant cannot speak before the user", f"{place}.role")
    turn = conversation.turns[-1]
    turn.answer = Answer(text if turn.answer is None else f"{turn.answer.text}\n{text}")


def _items(message: dict[str, Any], place: str, allows_pictures: bool) -> list[tuple[str, str]]:
    """(kind, text or address) of a message's content; kind is text or image."""
    content = message.get("content")
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, list):
        raise Refusal(f"{place}: content must be a text or a list", f"{place}.content")
    found = []
    for i, item in enumerate(content):
        where = f"{place}.content[{i}]"
        match item:
            case {"type": "text", "text": str(text)}:
                found.append(("text", text))
            case {"type": "image_url", "image_url": {"url": str(url)}} if allows_pictures:
                found.append(("image", url))
            case _:
                kind = item.get("type") if isinstance(item, dict) else item
                can = "text and image_url" if allows_pictures else "text"
                raise Refusal(f"{where}: {_short(kind)} is not supported; {can} is", where)
    return found


def _picture(url: str, place: str) -> Any:
    """The picture in a data URL; nothing is fetched.

    Raises:
        Refusal: another address, or not a picture.
    """
    head, comma, data = url.partition(",")
    kind = head.lower()
    if not (comma and kind.startswith("data:") and kind.endswith(";base64")):
        raise Refusal(
            f"{place}: image_url must be a data URL (data:image/png;base64,...); this server "
            "fetches nothing",
            "image_url",
            "invalid_image_url",
        )
    try:
        return picture_of(base64.b64decode(data, validate=True), f"{place}: image_url")
    except (binascii.Error, ValueError):
        raise Refusal(
            f"{place}: image_url is not base64", "image_url", "invalid_image_url"
        ) from None
    except UserError as error:
        raise Refusal(str(error), "image_url", "invalid_image") from None

"""Instruction data as turns: only what the assistant says is scored.

The assistant's texts begin with a space, a later turn's with a new line, so that they can be read
one after the other as they lie in the shard. The stream strips that and puts roles into words by
its template (`mllm.stream.template`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, Segment, TextSegment, Turn
from corpora.pipeline.readers.base import BadRecord, picture
from corpora.pipeline.readers.pictures import decoded, open_pictures
from corpora.pipeline.readers.tables import RowFormat, meta_of, text_of
from corpora.pipeline.units import Part
from mllm.errors import UserError

MARK = "<image>"
NO_INPUT = ("", "<noinput>")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "developer": "system",
}

Said = tuple[str, list[str | ImageSegment]]  # role, and texts and pictures in order


class _Instructions(RowFormat):
    suffixes = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
    keys: tuple[tuple[str, ...], ...]  # columns, in the spellings that are met

    def check(self, row: dict[str, Any], path: Path) -> None:
        if not any(set(spelling) <= set(row) for spelling in self.keys):
            wanted = " or ".join(" and ".join(spelling) for spelling in self.keys)
            raise UserError(
                f"{path}: no columns {wanted}; its columns are {', '.join(row) or 'none'}; "
                "name another --format"
            )


class Alpaca(_Instructions):
    name = "alpaca"
    summary = "Alpaca: instruction, input, output"
    keys = (("instruction", "output"),)

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        asked = text_of(row, "instruction", "no instruction")
        meta = meta_of(row, "instruction", "input", "output")
        yield _asked(asked, row.get("input"), text_of(row, "output", "no output"), meta)


class Unnatural(_Instructions):
    name = "unnatural"
    summary = "Unnatural Instructions: instruction and instances[] of input and output"
    keys = (("instruction", "instances"),)

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        asked = text_of(row, "instruction", "no instruction")
        instances = row.get("instances")
        if not isinstance(instances, list) or not instances:
            raise BadRecord("no instances")
        if not all(isinstance(instance, dict) for instance in instances):
            raise BadRecord("an instance is no object")
        for instance in instances:
            output = text_of(instance, "output", "no output")
            yield _asked(
                asked, instance.get("input"), output, meta_of(row, "instruction", "instances")
            )


class Flan(_Instructions):
    name = "flan"
    summary = "FLAN: inputs and targets (or input and target)"
    keys = (("inputs", "targets"), ("input", "target"))

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        asked, answered = self.keys[0] if "inputs" in row else self.keys[1]
        said = text_of(row, asked, "no input"), text_of(row, answered, "no target")
        yield _asked(said[0], None, said[1], meta_of(row, asked, answered))


class Conversations(_Instructions):
    name = "conversations"
    summary = "ShareGPT and LLaVA: conversations[] of from and value; <image> stands for a picture"
    keys = (("conversations",),)

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        turns = row.get("conversations")
        if not isinstance(turns, list):
            raise BadRecord("conversations is no list")
        said: list[Said] = []
        for turn in turns:
            match turn:
                case {"from": str(role), "value": str(text)}:
                    said.append((_role(role), [text]))
                case _:
                    raise BadRecord("a turn lacks from or value", repr(turn)[:200])
        names = row.get("image") if row.get("image") is not None else row.get("images")
        names = [] if names is None else names if isinstance(names, list) else [names]
        if names:
            _place(said, [_picture(name, part, self.options.image_dir) for name in names])
        yield _document(said, meta_of(row, "conversations", "image", "images"))


class Messages(_Instructions):
    name = "messages"
    summary = "OpenAI: messages[] of role and content; parts with image_url as data or local names"
    keys = (("messages",),)

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        messages = row.get("messages")
        if not isinstance(messages, list):
            raise BadRecord("messages is no list")
        said: list[Said] = []
        for message in messages:
            match message:
                case {"role": str(role), "content": str(text)}:
                    said.append((_role(role), [text]))
                case {"role": str(role), "content": list(content)}:
                    items = [_item(item, part, self.options.image_dir) for item in content]
                    said.append((_role(role), items))
                case _:
                    raise BadRecord("a message lacks role or content", repr(message)[:200])
        yield _document(said, meta_of(row, "messages"))


def _asked(instruction: str, given: Any, output: str, meta: dict[str, Any]) -> Document:
    """One question and its answer."""
    if given is not None and not isinstance(given, str):
        raise BadRecord(f"input is a {type(given).__name__}, not text", repr(given)[:200])
    if given is not None and given.strip() not in NO_INPUT:
        instruction = f"{instruction.strip()}\n{given.strip()}"
    return _document([("user", [instruction]), ("assistant", [output])], meta)


def _role(name: str) -> str:
    if name.lower() not in ROLES:
        raise BadRecord("unknown role", name)
    return ROLES[name.lower()]


def _item(item: Any, part: Part, image_dir: str) -> str | ImageSegment:
    match item:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(value)}}:
            return _picture(value, part, image_dir)
        case {"type": "image", "image": value} | {"type": "image", "path": value}:
            return _picture(value, part, image_dir)
    raise BadRecord("a part of a message is neither text nor picture", repr(item)[:200])


def _picture(value: Any, part: Part, image_dir: str) -> ImageSegment:
    if isinstance(value, dict):  # parquet's {bytes, path}
        if value.get("bytes"):
            return picture(value["bytes"])
        value = value.get("path")
    if not isinstance(value, str):
        raise BadRecord("no picture")
    if value.startswith("data:"):
        return decoded(value)
    if "://" in value:
        raise BadRecord("picture is not local", value)
    return open_pictures(image_dir or part.root).get(value)


def _place(said: list[Said], pictures: list[ImageSegment]) -> None:
    """Puts pictures where `<image>` stands; without any mark, before the first user's text."""
    marks = sum(item.count(MARK) for _, items in said for item in items if isinstance(item, str))
    if marks == 0:
        first = next((items for role, items in said if role == "user"), None)
        if first is None:
            raise BadRecord("a picture but no user's turn")
        first[:0] = pictures
        return
    if marks != len(pictures):
        raise BadRecord("marks and pictures differ in number", f"{marks}, {len(pictures)}")
    rest = iter(pictures)
    for _, items in said:
        placed: list[str | ImageSegment] = []
        for item in items:
            if isinstance(item, str):
                for number, text in enumerate(item.split(MARK)):
                    placed += [next(rest)] if number else []
                    placed.append(text.strip())
            else:
                placed.append(item)
        items[:] = placed


def _document(said: list[Said], meta: dict[str, Any]) -> Document:
    """The turns as a document. BadRecord when the assistant says nothing."""
    segments: list[Segment] = []
    turns: list[Turn] = []
    for role, items in said:
        texts = [item.strip() if isinstance(item, str) else item for item in items]
        content = [item for item in texts if item != ""]
        if not content:
            continue
        is_first = True
        for item in content:
            if isinstance(item, ImageSegment):
                segments.append(item)
                continue
            if role == "assistant":
                item = f" {item}"
            elif is_first and segments and turns:
                item = f"\n{item}"
            is_first = False
            segments.append(TextSegment(item, is_scored=role == "assistant"))
        turns.append(Turn(role, len(content)))
    if not any(turn.role == "assistant" for turn in turns):
        raise BadRecord("no answer")
    return Document("", tuple(segments), meta, tuple(turns))

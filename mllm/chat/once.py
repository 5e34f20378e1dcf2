"""Answers without a conversation, for pipelines: one, many independent ones, or those of a
transcript again."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.candidate import shares
from mllm.chat.conversation import Content, Conversation, Turn
from mllm.chat.lines import LineReader
from mllm.chat.sampling import Sampling
from mllm.chat.transcript import load, sampling_of
from mllm.command import print_json, printable
from mllm.errors import UserError

if TYPE_CHECKING:
    from mllm.chat.engine import Engine


def ask_once(
    engine: "Engine",
    conversation: Conversation,
    sampling: Sampling,
    out: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The answer to the conversation's last turn, with what it took.

    Args:
        out: takes its pieces as they come.

    Raises:
        UserError: it does not fit.
    """
    from mllm.chat.engine import Request

    request = Request(engine.encode(conversation), sampling)
    text = ""
    for piece in engine.answer(request):
        text += piece
        if out is not None:
            out(piece)
    return {
        "answer": text,
        "settings": sampling.values,
        "stats": request.stats.values,
    }


def rank_once(
    engine: "Engine", conversation: Conversation, candidates: list[str]
) -> dict[str, Any]:
    """The likeliest candidate as the answer, and the share of each."""
    scores = engine.rank(conversation, candidates)
    parts = shares(scores)
    best = max(range(len(parts)), key=parts.__getitem__)
    return {
        "answer": scores[best].text.strip(),
        "candidates": [
            {"text": score.text.strip(), "share": part, "nats": score.ll}
            for score, part in zip(scores, parts, strict=True)
        ],
    }


def run_batch(
    engine: "Engine",
    lines: Iterable[str],
    begun: Conversation,
    sampling: Sampling,
    reader: LineReader,
    is_json: bool,
) -> int:
    """Each line a question of its own, after the same shots. An answer a line, in their order.

    A line is text with paths of pictures in it, or JSON: `{"text": ..., "images": [PATH, ...]}`,
    with an `id` that the answer repeats. A line that cannot be asked is told on stderr, and in JSON
    in its place; the others go on.

    Returns:
        2 where a line could not be asked, else 0.
    """
    failed = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        value: dict[str, Any] = {"line": number}
        try:
            content, key = _batch_content(line.strip(), reader)
            value |= key
            conversation = begun.branched()
            conversation.turns.append(Turn(content))
            value |= ask_once(engine, conversation, sampling)
        except UserError as error:
            failed += 1
            value["error"] = str(error)
            print(f"line {number}: {printable(str(error))}", file=sys.stderr, flush=True)
        if is_json:
            print_json(value)
        else:
            print(" ".join(value.get("answer", "").split("\n")), flush=True)
    return 2 if failed else 0


def _batch_content(line: str, reader: LineReader) -> tuple[Content, dict[str, Any]]:
    if not line.startswith("{"):
        return reader.content(line), {}
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from None
    unknown = sorted(set(value) - {"text", "images", "id"})
    if unknown:
        raise UserError(f"key {unknown[0]!r}; a line has text, images and id")
    text, images = value.get("text", ""), value.get("images", [])
    if not isinstance(text, str) or not isinstance(images, list):
        raise UserError("text is a string and images a list of paths")
    content: Content = [reader.given_picture(str(path)) for path in images]
    if text.strip():
        content.append(text.strip())
    if not content:
        raise UserError("neither text nor images")
    return content, {"id": value["id"]} if "id" in value else {}


def replay(engine: "Engine", path: str | Path, is_json: bool) -> int:
    """Asks a transcript's turns again, each with its settings and seed, and compares.

    Returns:
        1 where an answer differs (one that was stopped only has to begin alike), else 0.
    """
    transcript = load(path)
    conversation = transcript.branches.conversation
    if transcript.model.get("fingerprint", "") not in ("", engine.fingerprint):
        print("the transcript was made by another model", file=sys.stderr)
    begun = conversation.branched()
    turns, begun.turns = begun.turns, []
    num_different = 0
    for number, turn in enumerate(turns, 1):
        said = turn.answer
        asked = Turn(turn.content)
        begun.turns.append(asked)
        if said is not None:
            begun.num_dropped = said.num_dropped
            settings = sampling_of(said.settings, f"{path}: turn {number}")
            found = ask_once(engine, begun, settings)["answer"]
            same = found.startswith(said.text) if said.is_stopped else found == said.text
            num_different += not same
            if is_json:
                print_json({"turn": number, "is_same": same, "was": said.text, "is": found})
            else:
                print(f"turn {number}: {'same' if same else 'DIFFERENT'}: {printable(found)}")
        asked.answer = said
    return 1 if num_different else 0

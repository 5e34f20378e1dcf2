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
from mllm.chat.room import WhenFull, made_to_fit
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
    when_full: WhenFull = "stop",
    out: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The answer to the conversation's last turn, with what it took.

    Args:
        out: takes its pieces as they come.

    Raises:
        UserError: it does not fit.
    """
    from mllm.chat.engine import Request

    sampling, to_drop = made_to_fit(engine, conversation, sampling, when_full)
    conversation.num_dropped += to_drop
    request = Request(engine.encode(conversation), sampling)
    text = ""
    for piece in engine.answer(request):
        text += piece
        if out is not None:
            out(piece)
    return {
        "answer": text,
        "num_dropped": conversation.num_dropped,
        "settings": sampling.values,
        "stats": request.stats,
    }


def with_stats(value: dict[str, Any]) -> dict[str, Any]:
    """What `ask_once` gave, as JSON has it."""
    return value | {"stats": value["stats"].values} if "stats" in value else value


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
    when_full: WhenFull = "stop",
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
            conversation = begun.branched()
            conversation.turns.append(Turn(_batch_content(line.strip(), reader, value)))
            value |= ask_once(engine, conversation, sampling, when_full)
        except UserError as error:
            failed += 1
            value["error"] = str(error)
            print(f"line {number}: {printable(str(error))}", file=sys.stderr, flush=True)
        if is_json:
            print_json(with_stats(value))
        else:
            print(" ".join(value.get("answer", "").split("\n")), flush=True)
    return 2 if failed else 0


def _batch_content(line: str, reader: LineReader, value: dict[str, Any]) -> Content:
    """What a line asks; its `id` goes into `value`, also where the rest cannot be read."""
    if not line.startswith("{"):
        return reader.content(line)
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from None
    if "id" in asked:
        value["id"] = asked["id"]
    unknown = sorted(set(asked) - {"text", "images", "id"})
    if unknown:
        raise UserError(f"key {unknown[0]!r}; a line has text, images and id")
    text, images = asked.get("text", ""), asked.get("images", [])
    if not isinstance(text, str) or not isinstance(images, list):
        raise UserError("text is a string and images a list of paths")
    content: Content = [reader.given_picture(str(path)) for path in images]
    if text.strip():
        content.append(text.strip())
    if not content:
        raise UserError("neither text nor images")
    return content


def replay(engine: "Engine", path: str | Path, is_json: bool) -> int:
    """Asks a transcript's turns again, of every branch, and compares.

    Each is asked as it was: after the same turns, with the shots, system text, settings and seed of
    that answer.

    Returns:
        1 where an answer differs (one that was stopped only has to begin alike), else 0.
    """
    transcript = load(path)
    if transcript.model.get("fingerprint", "") not in ("", engine.fingerprint):
        print("the transcript was made by another model", file=sys.stderr)
    is_alike = True
    for name, branch in transcript.branches.by_name.items():
        where = f"branch {printable(name)}, " if len(transcript.branches.by_name) > 1 else ""
        for number, turn in enumerate(branch.turns, 1):
            said = turn.answer
            if said is None:
                continue
            turns = [*branch.turns[: number - 1], Turn(turn.content)]
            asked = Conversation(said.system, said.shots, turns, said.num_dropped)
            settings = sampling_of(said.settings, f"{path}: {where}turn {number}")
            found = ask_once(engine, asked, settings)["answer"]
            is_same = found.startswith(said.text) if said.is_stopped else found == said.text
            is_alike &= is_same
            if is_json:
                print_json(
                    {"branch": name, "turn": number, "is_same": is_same}
                    | {"was": said.text, "is": found}
                )
            else:
                verdict = "same" if is_same else "DIFFERENT"
                print(f"{where}turn {number}: {verdict}: {printable(found)}", flush=True)
    return 0 if is_alike else 1

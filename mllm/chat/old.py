"""`mllm chat`: talk with an exported model in the terminal, pictures anywhere in a turn.

A model trained on documents does not follow instructions; it goes on with text. So a turn is put
in the form of the documents that it knows (`mllm.hf.messages.completion_turns`): text that
ends in `?` becomes `Question: ... Answer:`, other text stands as it is, and a picture without text
(`/image cat.png`) is followed by `An image of`. An answer ends at `</s>` or at a line's end.

A model of the instruct stage is asked in that stage's template (`mllm.stream.template`) instead,
and its answer ends at `</s>`.
"""

import re
import shlex
import signal
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any, TextIO

from mllm.command import Parser
from mllm.errors import UserError

HELP = """\
Type text, and paths of pictures anywhere in it; a question ends in `?`.
  /image PATH [TEXT]   a picture, then text; without text: "An image of"
  /reset               forget the conversation
  /help                this
  /quit                leave (also Ctrl-D). Ctrl-C stops an answer."""

PUNCTUATION = "?,.;:!"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
# A quoted word, or one in which a backslash keeps a space: what terminals paste for a dropped file.
WORD = re.compile(r"""(?<!\S)(?:"[^"]+"|'[^']+'|(?:\\.|[^\s\\])+)""")


class Conversation:
    """Turns so far and the model that answers them.

    Args:
        model_dir: an export.
        max_new_tokens: longest answer.
    """

    def __init__(self, model_dir: str | Path, max_new_tokens: int = 40) -> None:
        import torch
        from transformers.utils import logging

        from mllm.hf.load import load_export

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, self.processor = load_export(model_dir, device)
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        self.messages.clear()

    def answer(self, content: list[dict[str, Any]], stopped: Event | None = None) -> Iterator[str]:
        """The answer to one more turn, piece by piece. What was given out is remembered.

        Setting `stopped`, or closing the iterator, ends it at the next token.

        Raises:
            UserError: the conversation has outgrown the model's context.
        """
        turn = {"role": "user", "content": content}
        inputs = self.processor.apply_chat_template([*self.messages, turn]).to(self.model.device)
        used, available = inputs["input_ids"].shape[1], self.model.config.max_positions
        if available is not None and used + self.max_new_tokens > available:
            raise UserError(
                f"the conversation takes {used} positions and an answer up to "
                f"{self.max_new_tokens}, the model has {available}; /reset begins a new one"
            )
        pieces: list[str] = []
        try:
            for piece in self._generate(inputs, stopped or Event()):
                pieces.append(piece)
                yield piece
        finally:
            self.messages += [turn, {"role": "assistant", "content": "".join(pieces)}]

    def _generate(self, inputs: Any, stopped: Event) -> Iterator[str]:
        from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

        from tokenizer.specials import EOS_ID

        closed = Event()
        failures: list[BaseException] = []

        class Stopped(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **settings: Any) -> Any:
                import torch

                is_over = stopped.is_set() or closed.is_set()
                return torch.full((len(input_ids),), is_over, device=input_ids.device)

        tokenizer = self.processor.tokenizer
        ends_at_line = self.processor.template == "completion"
        stops = [EOS_ID, *(tokenizer.encode_text("\n") if ends_at_line else [])]
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

        def work() -> None:
            try:
                self.model.generate(  # type: ignore[misc]
                    **inputs,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([Stopped()]),
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    eos_token_id=stops,
                )
            except Exception as error:
                failures.append(error)
                streamer.end()

        worker = Thread(target=work, daemon=True)
        worker.start()
        is_first = True
        try:
            for piece in streamer:
                text = printable(piece).rstrip("\n")
                if is_first:
                    text = text.lstrip()
                if text:
                    is_first = False
                    yield text
        finally:
            closed.set()
            worker.join()
        if failures:
            raise failures[0]


def printable(text: str) -> str:
    """`text` without control characters, which could command the terminal; newlines stay."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf"))


def picture_item(path: str) -> dict[str, Any]:
    """A content item with the picture at `path`, opened now so that a bad one fails now.

    Raises:
        UserError: no such file, or not a picture.
    """
    from mllm.images import open_picture

    try:
        return {"type": "image", "image": open_picture(Path(path).expanduser())}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def content_of(line: str, notes: TextIO | None = None) -> list[dict[str, Any]]:
    """Text and pictures of one line, in order.

    A word is a picture if it ends like one and names a file, or at least looks like a path.
    Punctuation at its end belongs to the text before it; where that makes a question, the picture
    comes first, as in the documents that the model knows.

    Args:
        notes: where to say that a word only looks like a picture; stdout if left out.

    Raises:
        UserError: a picture cannot be opened.
    """
    content: list[dict[str, Any]] = []

    def add_text(text: str) -> None:
        if text:
            content.append({"type": "text", "text": text})

    end = 0
    for match in WORD.finditer(line):
        word = match[0].rstrip(PUNCTUATION)
        try:
            (path,) = shlex.split(word)
        except ValueError:  # an apostrophe: a word of text
            continue
        if not path.lower().endswith(PICTURE_SUFFIXES):
            continue
        if "/" not in path and not Path(path).is_file():
            print(f"{printable(path)}: no such file; taken as text", file=notes, flush=True)
            continue
        picture = picture_item(path)
        text, tail = line[end : match.start()].strip(), match[0].removeprefix(word)
        if text and tail.endswith("?"):
            content.append(picture)
            add_text(text + tail)
        else:
            add_text(text and text + tail)
            content.append(picture)
        end = match.end()
    add_text(line[end:].strip())
    return content


def image_command(rest: str) -> list[dict[str, Any]]:
    """The turn of `/image PATH [TEXT]`; here the path may end in anything."""
    match = WORD.match(rest)
    if match is None:
        raise UserError("/image needs a path: /image PATH [TEXT]")
    try:
        (path,) = shlex.split(match[0])
    except ValueError:
        path = match[0]
    return [picture_item(path), *content_of(rest[match.end() :])]


def respond(conversation: Conversation, line: str) -> bool:
    """Carries out one line and prints what comes of it; False when the user wants to leave."""
    command, _, rest = line.strip().partition(" ")
    if command in ("/quit", "/exit"):
        return False
    if command == "/help":
        print(HELP, flush=True)
    elif command == "/reset":
        conversation.reset()
        print("A new conversation.", flush=True)
    elif command.startswith("/") and command != "/image" and "/" not in command[1:]:
        print(f"No command {printable(command)}; /help lists them.", flush=True)
    elif line.strip():
        try:
            content = image_command(rest.strip()) if command == "/image" else content_of(line)
            print_answer(conversation, content)
        except UserError as error:
            print(printable(str(error)), flush=True)
    return True


def print_answer(conversation: Conversation, content: list[dict[str, Any]]) -> None:
    """Streams an answer to stdout. Ctrl-C ends the answer and nothing else; a second one leaves.

    A flag, since a KeyboardInterrupt is lost where it meets an import or a callback of a library.
    """
    stopped = Event()

    def on_interrupt(number: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        for piece in conversation.answer(content, stopped):
            print(piece, end="", flush=True)
    finally:
        signal.signal(signal.SIGINT, before)
    print(" [stopped]" if stopped.is_set() else "", flush=True)


def read_lines() -> Iterator[str]:
    """Lines that the user types, or that come through a pipe."""
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from sys.stdin
        return
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:  # an empty line: Ctrl-D leaves
            continue
        except EOFError:
            return


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm chat",
        description="Talk with an exported model; pictures anywhere in a turn.",
        epilog="examples:\n"
        "  mllm chat --model runs/demo/export\n"
        '  mllm chat --model runs/demo/export --image cat.png --once "what is in the image?"\n'
        "  printf '/image cat.png\\nwhat colour is it?\\n' | mllm chat --model runs/demo/export\n\n"
        "A conversation ends at the model's seq_len, unless a model with xPos has\n"
        '"blockwise_attention": true in its config.json.',
    )
    parser.add_argument("--model", required=True, help="an export folder")
    parser.add_argument("--image", action="append", default=[], help="picture before the text")
    parser.add_argument("--once", metavar="TEXT", help="print the answer to TEXT alone and leave")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="longest answer")
    args = parser.parse_args(argv)
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: at least 1")
    pictures = [picture_item(path) for path in args.image]
    if args.once is not None:
        content = [*pictures, *content_of(args.once, notes=sys.stderr)]
        if not content:
            raise UserError("--once needs a text, or a picture by --image")
        print_answer(Conversation(args.model, args.max_new_tokens), content)
        return 0
    conversation = Conversation(args.model, args.max_new_tokens)
    if sys.stdin.isatty():
        print(HELP, flush=True)
    if pictures:
        print_answer(conversation, pictures)
    for line in read_lines():
        if not respond(conversation, line):
            break
    return 0

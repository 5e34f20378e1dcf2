"""`mllm chat`: talk with an exported model, pictures anywhere in a turn."""

import argparse
import sys
from dataclasses import fields, replace
from typing import Any

from mllm.chat.conversation import Branches, Content, Conversation, Turn
from mllm.chat.lines import LineReader
from mllm.chat.room import WHEN_FULL
from mllm.chat.sampling import Sampling
from mllm.chat.terminal.loading import check_export
from mllm.chat.terminal.thumbnails import MODES
from mllm.chat.terminal.view import View, stats_line
from mllm.chat.transcript import Transcript, load
from mllm.command import Parser, print_json, printable, stdout_is_json
from mllm.errors import UserError

EXAMPLES = """\
examples:
  mllm chat --model runs/demo/export
  mllm chat --model runs/demo/export --web
  mllm chat --model runs/demo/export --image cat.png --once "what is in the image?"
  mllm chat --model runs/demo/export --shot "cat.png => a cat" --once dog.png --rank "a cat | a dog"
  printf '/image cat.png\\nwhat colour is it?\\n' | mllm chat --model runs/demo/export
  ls photos/*.jpg | mllm chat --model runs/demo/export --batch - --json > captions.jsonl
  mllm chat --model runs/demo/export --replay chat.json

At the prompt, /help lists the commands. A conversation ends at the model's seq_len, unless a model
with xPos has "blockwise_attention": true in its config.json."""


def parser() -> Parser:
    parser = Parser(
        prog="mllm chat",
        description="Talk with an exported model; pictures anywhere in a turn.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--model", required=True, help="an export folder")
    parser.add_argument("--image", action="append", default=[], help="picture before the text")
    parser.add_argument("--system", default="", metavar="TEXT", help="a text before all turns")
    parser.add_argument(
        "--shot",
        action="append",
        default=[],
        metavar="'PATH [TEXT] => ANSWER'",
        help="an example to learn from; may be given again",
    )
    parser.add_argument("--transcript", metavar="FILE", help="go on from what /save wrote")
    parser.add_argument("--allow-urls", action="store_true", help="fetch pictures over http(s)")
    parser.add_argument("--stats", action="store_true", help="speed after each answer")
    parser.add_argument(
        "--when-full",
        default="ask",
        choices=WHEN_FULL,
        help="where a prompt outgrows the context: ask (default; stop where nobody can be asked), "
        "drop the oldest turns, shorten the answer, stop",
    )
    decoding = parser.add_argument_group("decoding")
    about = {
        "temperature": "0 (default): the likeliest token",
        "top_p": "with a temperature (default 1)",
        "top_k": "with a temperature (default 0: all)",
        "beams": "of beam search (default 1)",
        "max_new_tokens": "longest answer (default 40)",
        "seed": "of sampling (default 0)",
    }
    for field in fields(Sampling):
        flag = "--" + field.name.replace("_", "-")
        decoding.add_argument(flag, type=field.type, help=about[field.name])  # type: ignore[arg-type]
    pipes = parser.add_argument_group("without a prompt")
    pipes.add_argument("--once", metavar="TEXT", help="print the answer to TEXT alone and leave")
    pipes.add_argument(
        "--batch", metavar="FILE", help="each line (- reads stdin) a question of its own"
    )
    pipes.add_argument(
        "--replay", metavar="FILE", help="ask every turn of a transcript again, compare"
    )
    pipes.add_argument("--rank", metavar="A|B", help="with --once: the likeliest of these answers")
    pipes.add_argument("--json", action="store_true", help="a JSON object an answer")
    screen = parser.add_argument_group("terminal")
    screen.add_argument(
        "--thumbnails",
        default="auto",
        choices=MODES,
        help="pictures in the terminal (default: kitty's protocol or sixel where it speaks them)",
    )
    screen.add_argument("--no-history", action="store_true", help="keep no lines over sessions")
    web = parser.add_argument_group("browser (pip install 'mllm[web]')")
    web.add_argument("--web", action="store_true", help="a page and /v1/chat/completions")
    web.add_argument("--host", default="127.0.0.1", help="address to bind to (default 127.0.0.1)")
    web.add_argument("--port", type=int, default=7860, help="(default 7860)")
    web.add_argument("--token", help="what a browser must know; made where --host is not loopback")
    return parser


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    given = {
        field.name: getattr(args, field.name)
        for field in fields(Sampling)
        if getattr(args, field.name) is not None
    }
    sampling = Sampling(**given)
    _check_modes(args)
    check_export(args.model)
    is_quiet = args.once is not None or args.batch is not None
    reader = LineReader(_to_stderr, args.allow_urls)
    if args.transcript is not None:
        made = load(args.transcript)
        made = replace(made, settings=replace(made.settings, **given))
    else:
        made = Transcript(branches=Branches(), settings=sampling)
    begun = made.branches.conversation
    begun.system = args.system or begun.system
    begun.shots += [reader.shot(shot, SHOT_HELP) for shot in args.shot]
    pictures: Content = [reader.given_picture(path) for path in args.image]
    if args.web:
        from mllm.chat.web.serve import serve

        if pictures:
            raise UserError("--image goes with --once, or a prompt; the page takes its own")
        serve(args.model, made.settings, args.host, args.port, args.token, begun)
        return 0
    if args.replay is not None or is_quiet:
        return _without_prompt(args, made, reader, pictures)
    return _with_prompt(args, made, pictures)


SHOT_HELP = "--shot needs both sides: --shot 'PATH [TEXT] => ANSWER'"


def _check_modes(args: argparse.Namespace) -> None:
    modes = [name for name in ("web", "once", "batch", "replay") if _is_given(args, name)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]}: one of them")
    if args.json and not modes:
        raise UserError("--json goes with --once, --batch or --replay")
    given = [name for name in ("transcript", "image", "shot", "system") if getattr(args, name)]
    if args.replay is not None and given:
        raise UserError(f"--replay asks what the transcript asked; leave --{given[0]} out")
    if args.rank is not None and args.once is None:
        raise UserError("--rank goes with --once")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: 0 to 65535")


def _is_given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) not in (None, False)


def _to_stderr(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _without_prompt(
    args: argparse.Namespace, made: Transcript, reader: LineReader, pictures: Content
) -> int:
    """`--once`, `--batch`, `--replay`."""
    from mllm.chat.once import replay, run_batch

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    begun = made.branches.conversation
    if args.once is not None:
        content = [*pictures, *reader.content(args.once)]
        if not content:
            raise UserError("--once needs a text, or a picture by --image")
        begun.turns.append(Turn(content))
    elif pictures:
        raise UserError("--image goes with --once, or a prompt; a batch names its own")
    with stdout_is_json():  # libraries print at import
        from mllm.chat.engine import Engine

        engine = Engine(args.model)
    if args.replay is not None:
        return replay(engine, args.replay, args.json)
    if args.batch is not None:
        with _open_batch(args.batch) as lines:
            return run_batch(engine, lines, begun, made.settings, reader, args.json, args.when_full)
    _once(args, engine, begun, made.settings)
    return 0


def _once(args: argparse.Namespace, engine: Any, asked: Conversation, sampling: Sampling) -> None:
    from mllm.chat.once import ask_once, rank_once, with_stats

    if args.rank is not None:
        value = rank_once(engine, asked, args.rank.split("|"))
        print_json(value) if args.json else print(printable(value["answer"]))
        return
    value = ask_once(engine, asked, sampling, args.when_full, None if args.json else _print_piece)
    print_json(with_stats(value)) if args.json else print(flush=True)
    if args.stats:
        print(stats_line(value["stats"]), file=sys.stderr)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _open_batch(path: str) -> Any:
    if path == "-":
        from contextlib import nullcontext

        from mllm.chat.terminal.typing import piped_lines

        return nullcontext(piped_lines())
    try:
        return open(path, encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _with_prompt(args: argparse.Namespace, made: Transcript, pictures: Content) -> int:
    """A conversation: at a keyboard, or its lines through a pipe."""
    from mllm.chat.terminal.commands import HELP, respond
    from mllm.chat.terminal.loading import LoadingEngine
    from mllm.chat.terminal.session import Session

    is_interactive = sys.stdin.isatty()
    view = View(is_interactive, args.thumbnails)
    keyboard: Any = None
    if is_interactive:
        from mllm.chat.terminal.typing import Keyboard, history_path

        keyboard = Keyboard(view, None if args.no_history else history_path())
    loading = LoadingEngine(args.model, keyboard and keyboard.fail)
    session = Session(
        loading,
        view,
        LineReader(view.note, args.allow_urls),
        made.settings,
        choose=keyboard and keyboard.choose,
        when_full=args.when_full,
        shows_stats=args.stats,
    )
    session.branches, session.held = made.branches, pictures
    if is_interactive:
        view.note(HELP + " /help lists the commands.")
        view.pictures(pictures)
        keyboard.attach(session)
    if keyboard is None:
        from mllm.chat.terminal.typing import piped_lines

        lines = piped_lines()
    else:
        lines = keyboard.lines()
    for line in lines:
        if not respond(session, line):
            break
    return 0

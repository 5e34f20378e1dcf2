"""The table of commands, and a line carried out by it."""

from collections.abc import Callable
from typing import NamedTuple

from mllm.chat.lines import IMAGE_COMMAND, PICTURE_SUFFIXES
from mllm.chat.terminal.session import Session
from mllm.command import printable
from mllm.errors import UserError


class Command(NamedTuple):
    """One command: what it does with the text after its name, and its lines of `/help`."""

    run: Callable[[Session, str], None]
    usage: str
    about: str


COMMANDS = {
    IMAGE_COMMAND: Command(Session.image, "PATH [TEXT]", "a picture, then text"),
    "/describe": Command(Session.describe, "[PATH]", "what is in the picture, or the last one"),
    "/retry": Command(Session.retry, "", "another answer to the last turn, by the next seed"),
    "/undo": Command(Session.undo, "[N]", "take the last turns back"),
    "/edit": Command(Session.edit, "[TEXT]", "change the last turn and ask again"),
    "/shot": Command(Session.shot, "PATH [TEXT] => ANSWER", "teach by an example"),
    "/shots": Command(Session.shots, "[drop N | clear]", "the examples"),
    "/rank": Command(Session.rank, "[TEXT =>] A | B", "probabilities of answers"),
    "/system": Command(Session.system, "[TEXT | clear]", "a text before all turns"),
    "/set": Command(
        Session.set,
        "[NAME VALUE]",
        "temperature, top_p, top_k, beams, max_new_tokens, seed, when_full",
    ),
    "/tokens": Command(Session.tokens, "", "how much of the context is used, and by what"),
    "/drop": Command(Session.drop, "[N]", "leave the oldest turns out, keeping shots; 0: none"),
    "/stats": Command(Session.stats, "[on | off]", "speed after each answer"),
    "/branch": Command(Session.branch, "[NAME]", "go on in a copy, or in the branch NAME"),
    "/branches": Command(Session.list_branches, "", "all branches"),
    "/show": Command(Session.show, "", "the conversation so far"),
    "/save": Command(Session.save, "FILE", "transcript with its pictures"),
    "/load": Command(Session.load, "FILE", "go on from a transcript"),
    "/reset": Command(Session.reset, "", "forget everything"),
}
OTHERS = {"/help": "this", "/quit": "leave (also Ctrl-D)"}
LEAVING = ("/quit", "/exit")

HELP = (
    "Type text, and paths of pictures anywhere in it; a question ends in `?`.\n"
    "Ctrl-C stops an answer, not the program."
)


def help_lines() -> list[str]:
    """`/help`."""
    rows = [(f"{name} {command.usage}", command.about) for name, command in COMMANDS.items()]
    rows += [(name, about) for name, about in OTHERS.items()]
    width = max(len(left) for left, _ in rows)
    return [*HELP.splitlines(), *(f"  {left:{width}}  {about}" for left, about in rows)]


def respond(session: Session, line: str) -> bool:
    """Carries out one line; what goes wrong by the user's hand is told and changes nothing.

    Returns:
        False when the user wants to leave.

    Raises:
        UserError: only where nobody is there to be told: the model cannot be loaded.
    """
    line = line.strip()
    name, _, rest = line.partition(" ")
    if name in LEAVING:
        return False
    try:
        _carry_out(session, line, name, rest.strip())
    except UserError as error:
        session.loading.check()  # a model that did not load ends the program with its own line
        session.view.error(str(error))
    except KeyboardInterrupt:  # before an answer began, such as while the model loads
        if not session.view.is_interactive:
            raise
        session.view.note("stopped")
    except BrokenPipeError:  # nobody reads the answers any more
        raise
    except OSError as error:
        place = error.filename or (name if name in COMMANDS else "the disk")
        session.view.error(f"{place}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:  # of the model, such as a GPU's full memory
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        session.view.error(f"the model failed ({reason}); the conversation is as it was")
    return True


def _carry_out(session: Session, line: str, name: str, rest: str) -> None:
    if (name in COMMANDS and name != IMAGE_COMMAND) or name in OTHERS or not line:
        session.leave_editing()
    if name == "/help":
        for text in help_lines():
            session.view.note(text)
    elif name in COMMANDS:
        COMMANDS[name].run(session, rest)
    elif name.startswith("/") and not _is_path(name):
        raise UserError(f"No command {printable(name)}; /help lists them.")
    elif line or session.held:
        session.say(line)


def _is_path(word: str) -> bool:
    return (
        "/" in word[1:] or "\\" in word or word.lower().rstrip("?,.;:!").endswith(PICTURE_SUFFIXES)
    )

"""What gives way where a conversation outgrows the context: chosen, never cut silently."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from mllm.chat.conversation import Conversation
from mllm.chat.sampling import Sampling
from mllm.errors import UserError

if TYPE_CHECKING:
    from mllm.chat.engine import Engine

WhenFull = Literal["ask", "drop", "shorten", "stop"]
WHEN_FULL: tuple[WhenFull, ...] = get_args(WhenFull)

# Asks the user for one of several letters.
Choose = Callable[[str, str], str]


def made_to_fit(
    engine: "Engine",
    conversation: Conversation,
    sampling: Sampling,
    when_full: WhenFull = "stop",
    choose: Choose | None = None,
) -> tuple[Sampling, int]:
    """The settings with which an answer fits, and the oldest turns to leave out for it.

    Args:
        when_full: `ask` is `stop` where nobody can be asked.

    Raises:
        UserError: it does not fit, and nothing was chosen that helps.
    """
    from mllm.chat.engine import ContextFull

    try:
        engine.check_room(engine.encode(conversation), sampling.max_new_tokens)
        return sampling, 0
    except ContextFull as full:
        error = full
    to_drop = engine.turns_to_drop(conversation, sampling.max_new_tokens) or 0
    left = error.available - error.used
    choices = {}
    if to_drop:
        oldest = "the oldest turn" if to_drop == 1 else f"the oldest {to_drop} turns"
        choices["drop"] = f"[d]rop {oldest}, keeping shots"
    if left > 0:
        choices["shorten"] = f"[s]horten this answer to {left} tokens"
    choice: str = when_full
    if choice == "ask" and choices and choose is not None:
        letters = {name[0]: name for name in choices}
        asked = f"{error}. {', '.join(choices.values())}, or [c]ancel?"
        choice = letters.get(choose(asked, "".join([*letters, "c"])), "stop")
    if choice == "drop" and to_drop:
        return sampling, to_drop
    if choice == "shorten" and left > 0:
        return replace(sampling, max_new_tokens=left), 0
    mends = [f"/drop {to_drop}"] if to_drop else []
    mends += ["/set max_new_tokens"] if left > 0 else []
    raise UserError(f"{error}; {', '.join([*mends, '/shots clear'])} or /reset make room")

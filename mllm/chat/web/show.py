"""A conversation for eyes, as HTML: turns, thumbnails, bars.

Nothing that a user or a model wrote becomes markup: all of it goes through `escaped`.
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from mllm.candidate import CandidateScore
from mllm.chat.conversation import Answer, Content, Conversation
from mllm.chat.pictures import Picture
from mllm.chat.prompt import Usage
from mllm.chat.text import printable_lines
from mllm.chat.web.guard import FILE
from mllm.chat.web.session import Full

THUMBNAIL_PIXELS = 448  # of the longer side


def escaped(text: str) -> str:
    """`text` for HTML, without control characters.

    Braces and dollars too: gradio's HTML component is a template.
    """
    safe = html.escape(printable_lines(text))
    for character in "{}$`":
        safe = safe.replace(character, f"&#{ord(character)};")
    return safe


class Thumbnails:
    """Small copies of pictures in a folder that the page may read: no metadata, no odd formats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, picture: Picture) -> Path:
        path = self.folder / f"{picture.sha256}.jpg"
        if not path.exists():
            from mllm.images import open_picture

            small = open_picture(picture.data)
            small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            aside = path.with_suffix(f".{os.urandom(6).hex()}")  # two sessions may make it at once
            small.save(aside, "JPEG", quality=88)
            os.replace(aside, path)
        return path

    def address(self, picture: Picture) -> str:
        return FILE + quote(str(self.path(picture)))


def turns(conversation: Conversation, thumbnails: Thumbnails) -> str:
    """All turns, each with texts and pictures in their order; without the last answer."""
    if not conversation.turns:
        return '<p class="empty">Attach pictures, write a text, and ask.</p>'
    rows = []
    for place, turn in enumerate(conversation.turns):
        if place == conversation.num_dropped and place:
            words = "turn above is" if place == 1 else f"{place} turns above are"
            rows.append(f'<div class="left-out">the {words} no longer shown to the model</div>')
        kind = "user dropped" if place < conversation.num_dropped else "user"
        rows.append(f'<div class="turn {kind}">{_inline(turn.content, thumbnails)}</div>')
        if place < len(conversation.turns) - 1 and turn.answer is not None:
            rows.append(_answer(turn.answer, turn.attempt, kind.replace("user", "model")))
    return "".join(rows)


def last_answer(conversation: Conversation, is_running: bool) -> str:
    if not conversation.turns:
        return ""
    turn = conversation.turns[-1]
    answer = turn.answer
    if answer is None or (is_running and not answer.text):
        return '<div class="turn model waiting">…</div>' if is_running else ""
    return _answer(answer, turn.attempt, "model running" if is_running else "model")


def _answer(answer: Answer, attempt: int, kind: str) -> str:
    words = escaped(answer.text) if answer.text else '<span class="note">(nothing)</span>'
    if answer.is_stopped:
        words += ' <span class="note">[stopped]</span>'
    return f'<div class="turn {kind}" data-attempt="{attempt}">{words}</div>'


def meter(usage: Usage, available: int | None, wanted: int) -> str:
    """A bar of the context: pictures, text, the longest answer."""
    limit = "no limit" if available is None else f"of {available:,}"
    most = max(available or 0, usage.total + wanted)
    is_over = available is not None and usage.total + wanted > available
    bars = "".join(
        f'<i class="{kind}" style="width:{100 * number / most:.2f}%"></i>'
        for kind, number in (
            ("pictures", usage.pictures),
            ("text", usage.text),
            ("answer", min(wanted, most - usage.total)),
        )
    )
    pictures = "1 picture" if usage.num_pictures == 1 else f"{usage.num_pictures} pictures"
    words = (
        f"<span><b>{usage.total:,}</b> positions {limit}</span>"
        f'<span class="key pictures">{usage.pictures:,} in {pictures}</span>'
        f'<span class="key text">{usage.text:,} in text</span>'
        f'<span class="key answer">up to {wanted:,} for an answer</span>'
    )
    return f'<div class="meter{" over" if is_over else ""}"><div>{bars}</div><p>{words}</p></div>'


def notice(text: str, kind: str = "error") -> str:
    return f'<div class="notice {kind}" role="alert">{escaped(text)}</div>' if text else ""


def full_words(full: Full) -> str:
    """Why a turn does not fit, for the panel with the choice."""
    words = f"This does not fit: {full.error}. Nothing was asked yet."
    if full.to_drop is None:
        words += " Leaving older turns out is not enough: use fewer shots or a shorter turn."
    return f'<div class="full" role="alert">{escaped(words)}</div>'


def shots(conversation: Conversation, thumbnails: Thumbnails) -> str:
    """Each shot with its pictures and a button that removes it (`page.REMOVES`)."""
    if not conversation.shots:
        return '<p class="empty">None yet. A shot shows the model what an answer looks like.</p>'
    rows = []
    for place, shot in enumerate(conversation.shots):
        rows.append(
            f'<li><div class="content">{_inline(shot.content, thumbnails)}'
            f'<span class="arrow">⇒</span><b>{escaped(shot.answer)}</b></div>'
            f'<button data-shot="{place}" aria-label="Remove shot {place + 1}">✕</button></li>'
        )
    return f'<ol class="shots">{"".join(rows)}</ol>'


def _inline(content: Content, thumbnails: Thumbnails) -> str:
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(f"<span>{escaped(part)}</span>")
        else:
            label = escaped(part.label)
            address = html.escape(thumbnails.address(part))
            image = f'<img src="{address}" alt="{label}" title="{label}">'
            parts.append(f'<a href="{address}" target="_blank" rel="noreferrer">{image}</a>')
    return "".join(parts)


def ranking(scores: Sequence[CandidateScore], shares: Sequence[float]) -> str:
    """Candidates, the likeliest first, each with a bar."""
    order = sorted(range(len(scores)), key=lambda i: -shares[i])
    rows = "".join(
        f"<tr><td>{escaped(scores[i].text.strip())}</td>"
        f'<td class="bar"><i style="width:{100 * shares[i]:.1f}%"></i></td>'
        f"<td>{100 * shares[i]:.1f} %</td>"
        f'<td title="log-likelihood in nats">{scores[i].ll:.2f}</td></tr>'
        for i in order
    )
    return (
        '<table class="ranking"><thead><tr><th>candidate</th><th></th><th>share</th>'
        f"<th>nats</th></tr></thead><tbody>{rows}</tbody></table>"
    )

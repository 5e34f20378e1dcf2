"""HTML that is escaped by construction: `h` makes `Markup` and escapes every plain string in it.

No page code joins strings into tags, so a caption or a file name can never become markup.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

EMPTY_TAGS = {"br", "img", "meta"}
Child = (
    Any  # str (escaped), Markup (kept), number (str of it), None (nothing) or an iterable of these
)


class Markup(str):
    """Text that already is HTML."""


def render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return html.escape(str(child))
    return "".join(map(render, child))


def join(children: Iterable[Child]) -> Markup:
    return Markup(render(children))


def h(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """One element. `class_` stands for class, `_` for `-`; an attribute of None is left out."""
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in EMPTY_TAGS:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{render(children)}</{tag}>")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Child]], *, numeric: Iterable[int] = ()
) -> Markup:
    """A table that becomes a stack of labelled lines on a narrow screen.

    Args:
        numeric: indices of the columns that are set flush right.
    """
    right = set(numeric)
    head = [h("th", name, class_="num" if i in right else None) for i, name in enumerate(columns)]
    body = [
        h(
            "tr",
            [
                h(
                    "td",
                    h("div", cell),
                    class_="num" if i in right else None,
                    data_label=columns[i] or None,
                )
                for i, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    kind = "narrow" if len(columns) <= 4 else None
    return h("table", h("thead", h("tr", head)), h("tbody", body), class_=kind)


def number(value: float | None, decimals: int = 1) -> str:
    """`12,345.6`, or a dash where there is no value."""
    return "–" if value is None else f"{value:,.{decimals}f}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def share_bar(share: float) -> Markup:
    return h(
        "span",
        h("span", h("i", style=f"width:{100 * share:.1f}%"), class_="bar"),
        h("span", f"{100 * share:.1f} %", class_="value"),
        class_="share",
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def words(key: str) -> str:
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]

"""The frame of every page: head, heading, contents, sections, foot. Nothing is loaded or run."""

from collections.abc import Sequence

from mllm.report.markup import Child, Markup, h, render
from mllm.report.style import CSS

# Nothing may be loaded or run: a second wall behind the escaping.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(
    title: str,
    subtitle: Child,
    sections: Sequence[tuple[str, str, Child]],
    *,
    lead: Markup | None = None,
    missing: Sequence[str] = (),
    written_by: str,
) -> str:
    """The HTML document.

    Args:
        sections: anchor, heading and body of each.
        lead: what stands above the list of contents.
        missing: lines about what is not on the page.
        written_by: the command.
    """
    main = h(
        "main",
        h("h1", title),
        h("p", subtitle, class_="subtitle"),
        lead,
        h("nav", [h("a", name, href=f"#{anchor}") for anchor, name, _ in sections]),
        _missing(missing),
        [h("section", h("h2", name), body, id=anchor) for anchor, name, body in sections],
        h("footer", "Written by ", h("code", written_by), ". This file needs no network."),
    )
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("title", title),
        h("style", Markup(CSS)),
    )
    return "<!doctype html>\n" + render(h("html", head, h("body", main), lang="en")) + "\n"


def _missing(missing: Sequence[str]) -> Markup | None:
    if not missing:
        return None
    return h(
        "div",
        "Not on this page, because it was not there when the page was written:",
        h("ul", [h("li", line) for line in missing]),
        class_="missing",
    )

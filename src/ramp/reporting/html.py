"""The one page style of ramp: self-contained HTML, light or dark, no script, nothing fetched.

A page is a list of sections, a section a list of HTML parts:

    curves = svg(line(...))  # of ramp.reporting.figure
    parts = [section("Loss", curves, table(("step", "loss"), rows), note="Nats per token.")]
    write_page(path, "My run", parts)

A plain string that reaches a helper is text and gets escaped. What is HTML already carries the type
`Html`, which every helper here returns. Parts of a section or a page are taken as HTML as they are.
"""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ramp.files import write_atomic

MAX_CHARS = 4_000  # of one text on a page; what is longer is cut and says so

STYLE_SHEET = Path(__file__).with_name("page.css")

# The policy forbids scripts and every fetch, so a page stays harmless whatever text it shows.
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · ramp</title><style>{style}</style></head>
<body><main><header><b>ramp</b><h1>{title}</h1>{note}</header>
{body}</main></body></html>
"""


class Html(str):
    """A string that is HTML and must not be escaped again."""

    __slots__ = ()


def escape(value: Any, limit: int = MAX_CHARS) -> Html:
    """The value as escaped text of at most `limit` characters; JSON for what is no text."""
    if isinstance(value, Html):
        return value
    text = value
    if not isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > limit:
        text = f"{text[:limit]} … ({len(text) - limit:,} more characters)"
    return Html(html.escape(text))


def element(tag: str, *parts: str, **attributes: str) -> Html:
    """`<tag>` around parts of HTML. An attribute `class_` is written `class`."""
    pairs = [f' {name.strip("_")}="{html.escape(text)}"' for name, text in attributes.items()]
    return Html(f"<{tag}{''.join(pairs)}>{''.join(parts)}</{tag}>")


def paragraph(text: str, **attributes: str) -> Html:
    """A paragraph of text; `class_="note"` sets it small and grey."""
    return element("p", escape(text), **attributes)


def heading(text: str) -> Html:
    """A heading inside a section."""
    return element("h3", escape(text))


def preformatted(text: str, limit: int = MAX_CHARS) -> Html:
    """Text as it stands: code, samples, files."""
    return element("pre", escape(text, limit))


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that scrolls when it is wider than the page. Figures are set right, words left."""
    rows = [list(row) for row in rows]
    # Words in the last column mean a table to be read rather than compared by its figures.
    is_text = any(" " in str(row[-1]) for row in rows)
    lines = [_row("th", head)]
    lines += [_row("td", row) for row in rows]
    body = element("table", *lines, class_="words" if is_text else "figures")
    return element("div", body, class_="scroll")


def _row(tag: str, cells: Sequence[Any]) -> Html:
    escaped = [escape(cell if isinstance(cell, str) else str(cell)) for cell in cells]
    return element("tr", *(element(tag, cell) for cell in escaped))


def section(title: str, *parts: str, note: str = "") -> Html:
    """A titled part of a page; nothing when there is nothing in it."""
    if not any(parts):
        return Html()
    under = paragraph(note, class_="note") if note else ""
    return element("section", element("h2", escape(title)), under, *parts)


def document(title: str, parts: Iterable[str], note: str = "") -> str:
    """A whole page of sections under a title. Empty sections are left out."""
    text = PAGE.format(
        title=escape(title),
        style=STYLE_SHEET.read_text(encoding="utf-8"),
        note=paragraph(note, class_="note") if note else "",
        body="\n".join(part for part in parts if part),
    )
    # A lone surrogate in a text of the run cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def write_page(path: Path, title: str, parts: Iterable[str], note: str = "") -> Path:
    """Write `document` to `path`, atomically; returns the path."""
    write_atomic(path, document(title, parts, note))
    return path

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
    # A figure or a list from a JSON file is shown the way the file has it.
    if not isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > limit:
        text = f"{text[:limit]} … ({len(text) - limit:,} more characters)"
    return Html(html.escape(text))


def paragraph(text: str) -> Html:
    """A paragraph of text."""
    return Html(f"<p>{escape(text)}</p>")


def remark(text: str) -> Html:
    """A remark, small and grey; nothing for no text."""
    return Html(f'<p class="note">{escape(text)}</p>' if text else "")


def heading(text: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def preformatted(text: str, limit: int = MAX_CHARS) -> Html:
    """Text as it stands: code, samples, files."""
    return Html(f"<pre>{escape(text, limit)}</pre>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """A table that scrolls when it is wider than the page.

    Figures are set right and words left, and a head as its column is.
    """
    rows = [[str(cell) if not isinstance(cell, str) else cell for cell in row] for row in rows]
    # Words in the last column mean a table to be read rather than compared by its figures.
    is_text = any(" " in cell for row in rows for cell in row[-1:])
    # A bar begins at the left of its column.
    bars = {i for row in rows for i, cell in enumerate(row) if cell.startswith("<div")}
    body = _row("th", head, bars) + "".join(_row("td", row, bars) for row in rows)
    kind = "words" if is_text else "figures"
    return Html(f'<div class="scroll"><table class="{kind}">{body}</table></div>')


def _row(tag, cells, left):
    written = ""
    for i, cell in enumerate(cells):
        side = ' class="left"' if i in left else ""
        written += f"<{tag}{side}>{escape(cell)}</{tag}>"
    return f"<tr>{written}</tr>"


def section(title: str, *parts: str, note: str = "", anchor: str = "") -> Html:
    """A titled part of a page; nothing when there is nothing in it. Links reach its `anchor`."""
    # A caller may build its parts without asking first whether there is anything to show.
    if not any(parts):
        return Html()
    body = "".join(parts)
    name = f' id="{escape(anchor)}"' if anchor else ""
    return Html(f"<section{name}><h2>{escape(title)}</h2>{remark(note)}{body}</section>")


def document(title: str, parts: Iterable[str], note: str = "") -> str:
    """A whole page of sections under a title. Empty sections are left out."""
    text = PAGE.format(
        title=escape(title),
        style=STYLE_SHEET.read_text(encoding="utf-8"),
        note=remark(note),
        body="\n".join(part for part in parts if part),
    )
    # A lone surrogate in a text of the run cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def write_page(path: Path, title: str, parts: Iterable[str], note: str = "") -> Path:
    """Write `document` to `path`, atomically; returns the path."""
    write_atomic(path, document(title, parts, note))
    return path

"""What pages are made of. Every text that comes in is escaped here; a page holds all it needs and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from modern_llm.reporting.record import is_number
from modern_llm.reporting.tables import shown, visible

_NOTICES_AT_FIRST = 5
_SHORT = 14  # characters of a cell that is not broken into lines


@dataclass(frozen=True)
class Cell:
    """One cell of a table that is more than its value.

    Attributes:
        value: what it shows, and sorts by unless `order` is given.
        order: number to sort by.
        note: smaller text below the value.
        title: shown while the pointer is over it.
        kind: class in the style sheet: `best`, `near`, `failed` …
    """

    value: Any
    order: float | None = None
    note: str = ""
    title: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: of the rows' dicts.
        name: in the head; empty: the key.
        extra: hidden until all columns are asked for.
    """

    key: str
    name: str = ""
    extra: bool = False


@dataclass(frozen=True)
class Raw:
    """HTML that is safe already."""

    html: str


def text(value: Any) -> str:
    """A value as HTML text."""
    return value.html if isinstance(value, Raw) else escape(visible(shown(value)))


def name(value: Any) -> str:
    """A name as HTML text that may be broken after its joints: `validation_` `loss`, `model.` `rope`."""
    return re.sub(r"([_./,=-])(?=\w)", r"\1<wbr>", text(value))


def page(title: str, note: str, sections: Sequence[str]) -> str:
    """A page with everything inside it; its policy forbids to load anything, and to run any script but its own."""
    style, script = asset("page.css"), asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'"
    )
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{text(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,">\n<style>{style}</style></head>\n'
        f'<body><header><h1>{text(title)}</h1><p class="note">{text(note)}</p></header>\n<main>\n{body}\n</main>\n'
        f"<script>{script}</script></body></html>\n"
    )


def asset(name: str) -> str:
    """A file of `assets/`."""
    return files("modern_llm.reporting.pages").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def write_page(path: Path, html: str) -> Path:
    """Write a page in one go; a reader never sees half of it."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(html, encoding="utf-8", errors="replace")
    return aside.replace(path)


def section(title: str, *parts: str, note: str = "") -> str:
    """A part of the page under its own heading; nothing where all parts are empty."""
    if not any(parts):
        return ""
    below = f'<p class="note">{text(note)}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{below}{''.join(parts)}</section>"


def details(summary: str, *parts: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{text(summary)}</summary>{''.join(parts)}</details>" if any(parts) else ""


def table(
    columns: Sequence[Column | str],
    rows: Sequence[dict[str, Any]],
    identity: str = "",
    runs: Sequence[int] | None = None,
) -> str:
    """A table that a click on a head sorts; numbers are set to the right.

    Args:
        columns: the first one names the row.
        rows: column's key -> value or `Cell`; an empty cell where there is none.
        identity: `id` in the page.
        runs: the run that each row is about, so that the page's filter reaches it.
    """
    if not rows:
        return ""
    given = [column if isinstance(column, Column) else Column(column) for column in columns]
    head = "".join(
        f'<th scope="col"{_class("x" if c.extra else "")}{_title(c.key if c.name else "")}>'
        f'<button type="button">{name(c.name or c.key)}</button></th>'
        for c in given
    )
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(_cell(row.get(column.key), column, first=place == 0) for place, column in enumerate(given))
        about = f' data-run="{runs[number]}"' if runs is not None else ""
        lines.append(f"<tr{about}>{cells}</tr>")
    marks = ' class="few"' if any(column.extra for column in given) else ""
    named = f' id="{identity}"' if identity else ""
    return (
        f'<div class="scroll" tabindex="0"><table{named}{marks}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: Any, column: Column, first: bool) -> str:
    cell = value if isinstance(value, Cell) else Cell(value)
    number = cell.order if cell.order is not None else cell.value if is_number(cell.value) else None
    short = len(shown(cell.value)) <= _SHORT
    kinds = ["n" if number is not None else "s" if short else "", cell.kind, "x" if column.extra else ""]
    classes = _class(" ".join(filter(None, kinds)))
    sorted_by = f' data-v="{number!r}"' if number is not None else ""
    note = f"<small>{text(cell.note)}</small>" if cell.note else ""
    tag = 'th scope="row"' if first else "td"
    inner = name(cell.value) if first else text(cell.value)
    return f"<{tag}{classes}{sorted_by}{_title(cell.title)}>{inner}{note}</{tag[:2]}>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _title(title: str) -> str:
    return f' title="{text(title)}"' if title else ""


def facts(values: dict[str, Any]) -> str:
    """A table of two columns; nested dicts are told by dotted names."""
    # As text: below each other stand numbers of different things.
    return table(["what", "value"], [{"what": key, "value": shown(value)} for key, value in flat(values).items()])


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict with dotted names; what is empty is left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found


def cards(values: dict[str, Any]) -> str:
    """The few numbers that one came for: name -> value or `Cell`."""
    made = []
    for title, value in values.items():
        cell = value if isinstance(value, Cell) else Cell(value)
        note = f"<small>{name(cell.note)}</small>" if cell.note else ""
        made.append(f'<div class="card"><span>{name(title)}</span><b>{text(cell.value)}</b>{note}</div>')
    return f'<div class="cards">{"".join(made)}</div>' if made else ""


def notices(messages: Sequence[str]) -> str:
    """What must be known before the numbers are read."""
    items = [f"<li>{text(message)}</li>" for message in messages]
    first, rest = items[:_NOTICES_AT_FIRST], items[_NOTICES_AT_FIRST:]
    more = f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>" if rest else ""
    return f'<div class="notices" role="note"><ul>{"".join(first)}</ul>{more}</div>' if items else ""


def sample(prompt: Any, continuation: Any, limit: int = 20_000) -> str:
    """A prompt and what the model wrote; what lies beyond `limit` characters is counted instead."""
    prompt, continuation = str(prompt), str(continuation)
    asked, written = prompt[:limit], continuation[:limit]
    left = len(prompt) + len(continuation) - len(asked) - len(written)
    cut = f'<span class="cut"> … {left:,} more characters in result.json</span>' if left else ""
    return f'<pre class="sample"><span class="prompt">{text(asked)}</span>{text(written)}{cut}</pre>'


def side_by_side(prompt: str, texts: dict[str, str]) -> str:
    """A prompt, and what each of several models wrote behind it, in columns where the screen has room."""
    columns = "".join(f"<div><h3>{name(who)}</h3>{sample('', written)}</div>" for who, written in texts.items())
    return f'<section><pre class="sample prompt">{text(prompt)}</pre><div class="beside">{columns}</div></section>'


def picture(path: Path, description: str) -> str:
    """A PNG file inside the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="picture" alt="{text(description)}" src="data:image/png;base64,{content}">'


def command(line: str) -> str:
    """A command to be copied."""
    if not line:
        return '<p class="note">no command is recorded</p>'
    return f'<div class="command"><pre>{escape(line)}</pre><button type="button" class="copy">copy</button></div>'


def embedded(identity: str, data: Any) -> str:
    """JSON inside the page, for its script; no text in it can end the element or be anything but data."""
    safe = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only, control characters escaped
    for character in "<>&":
        safe = safe.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{identity}">{safe}</script>'

"""Rows to Markdown and CSV, and values to text."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Control characters and the marks that turn the direction of text: shown, because they would act instead.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(value: Any) -> str:
    """A value as a person reads it: four significant digits, thousands grouped."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # Zeros at the end stay, so that the numbers of a column stand below each other.
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:#,.4g}".rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def visible(text: str) -> str:
    """A text whose control characters can be seen: ESC as ␛, others as ⟦U+202E⟧; line ends and tabs stay."""

    def picture(found: re.Match[str]) -> str:
        code = ord(found[0])
        return "\u2421" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else f"⟦U+{code:04X}⟧"

    return INVISIBLE.sub(picture, text.replace("\r\n", "\n"))


def markdown(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; a row without a column's key has an empty cell."""
    head = [markdown_text(column) for column in columns]
    cells = [[markdown_text(shown(row.get(column))) for column in columns] for row in rows]
    widths = [max([len(c), 3, *(len(row[i]) for row in cells)]) for i, c in enumerate(head)]
    lines = [head, ["-" * w for w in widths], *cells]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def markdown_text(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    plain = re.sub(r"([\\`*|\[\]])", r"\\\1", visible(text)).replace("\n", " ")
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", plain)  # inside a word an underscore is no emphasis


def write_csv(columns: Sequence[str], rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A CSV file with full precision. A text that a spreadsheet would compute gets an apostrophe in front."""
    # A lone surrogate, which JSON can hold, is no text that a file can hold.
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writerow({column: _defused(column) for column in columns})
        writer.writerows({name: _defused(value) for name, value in row.items()} for row in rows)
    return path


def _defused(value: Any) -> Any:
    """A text that begins as a formula does, so that a spreadsheet shows it; a number in words stays one."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
        return value
    except ValueError:
        return f"'{value}"

"""Rows to Markdown and CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def shown(value: Any) -> str:
    """A value as a person reads it: four significant digits, thousands grouped."""
    if isinstance(value, float):
        if value == int(value) and abs(value) < 1e15:
            return f"{int(value):,}"
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def markdown(columns: list[str], rows: list[dict[str, Any]]) -> str:
    """A Markdown table; a row without a column's key has an empty cell."""
    cells = [[shown(row.get(column)) for column in columns] for row in rows]
    widths = [max([len(c), 3, *(len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    lines = [columns, ["-" * w for w in widths], *cells]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def write_csv(columns: list[str], rows: list[dict[str, Any]], path: Path) -> Path:
    """A CSV file with full precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path

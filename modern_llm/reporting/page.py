"""The report of a run: one self-contained HTML page, and its curve as a picture beside it."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from modern_llm.reporting.curves import draw_loss
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import shown, write_csv

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
.note { color: #666; margin-top: .2rem; overflow-wrap: anywhere } img { max-width: 100% }
table { border-collapse: collapse } td, th { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top }
th { font-weight: 600; border-bottom: 1px solid #ccc }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.cards { display: flex; gap: 1rem; flex-wrap: wrap; margin: 1rem 0 }
.card { border: 1px solid #ddd; border-radius: .4rem; padding: .5rem 1rem }
.card b { display: block; font-size: 1.3rem }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; white-space: pre-wrap; font-size: 13px }
.prompt { color: #888 }
"""


def html_page(title: str, note: str, sections: list[str]) -> str:
    """A page with everything inside it."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1><p class="note">{escape(note)}</p>\n{body}\n</body></html>\n'
    )


def html_table(columns: list[str], rows: list[dict[str, Any]]) -> str:
    """A table; numbers are set to the right."""
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    lines = []
    for row in rows:
        cells = [row.get(column) for column in columns]
        kinds = [" class=number" if type(cell) in (int, float) else "" for cell in cells]
        lines.append("".join(f"<td{k}>{escape(shown(c))}</td>" for k, c in zip(kinds, cells, strict=True)))
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def html_picture(path: Path, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'


def _cards(facts: dict[str, float | None]) -> str:
    cards = (f'<div class="card">{escape(n)}<b>{shown(v)}</b></div>' for n, v in facts.items() if v is not None)
    return '<div class="cards">' + "".join(cards) + "</div>"


def write_run_report(folder: Path) -> dict[str, Path]:
    """Write `report.html`, `loss.png` and `metrics.csv` from what the run left.

    Args:
        folder: of a finished run.

    Returns:
        What was written, by name.
    """
    run = RunRecord.read(folder)
    metrics, result = run.result["metrics"], run.result
    curve = draw_loss({folder.name: run}, folder / "loss.png")
    columns = list(dict.fromkeys(key for row in run.rows for key in row))
    table = write_csv(columns, run.rows, folder / "metrics.csv")
    last = run.sittings[-1] if run.sittings else {}
    splits = [s for s in ("validation", "test") if f"{s}_loss" in metrics]
    facts = {f"{s} perplexity per token": metrics[f"{s}_token_perplexity"] for s in splits}
    facts |= {f"{s} perplexity per word": metrics.get(f"{s}_word_perplexity") for s in splits}
    facts |= {f"{s} bits per byte": metrics.get(f"{s}_bits_per_byte") for s in splits}
    sections = [
        _cards(facts),
        html_picture(curve, "loss over optimiser steps"),
        "<h2>Samples</h2>",
        *(
            f'<pre><span class="prompt">{escape(s["prompt"])}</span>{escape(s["text"])}</pre>'
            for s in result.get("samples", [])
        ),
        "<h2>Final metrics</h2>",
        html_table(["metric", "value"], [{"metric": k, "value": v} for k, v in metrics.items()]),
        "<h2>How perplexity was measured</h2>",
        html_table(
            ["what", "value"], [{"what": k, "value": v} for k, v in result.get("perplexity_protocol", {}).items()]
        ),
        "<h2>Where it ran</h2>",
        html_table(["what", "value"], [{"what": k, "value": v} for k, v in ({**result["runtime"], **last}).items()]),
        f"<details><summary>Configuration</summary><pre>{escape(run.config)}</pre></details>",
    ]
    page = folder / "report.html"
    page.write_text(html_page(folder.name, last.get("command", ""), sections), encoding="utf-8")
    return {"curve": curve, "metrics": table, "report": page}

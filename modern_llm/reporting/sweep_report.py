"""The end of a sweep: one table of what differed and every final metric, and the curves in one picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from modern_llm.reporting.curves import draw_loss
from modern_llm.reporting.page import html_page, html_picture, html_table
from modern_llm.reporting.record import RunRecord, job_status
from modern_llm.reporting.tables import markdown, write_csv


def write_sweep_report(folder: Path) -> dict[str, Path]:
    """Write `sweep.md`, `sweep.csv`, `curves.png` and `report.html`, however far the sweep is.

    Args:
        folder: of the sweep.

    Returns:
        What was written, by name.
    """
    jobs = [dict(o.split("=", 1) for o in job) for job in json.loads((folder / "sweep.json").read_text())["jobs"]]
    keys = list(dict.fromkeys(key for job in jobs for key in job))
    varied = [key for key in keys if len({job.get(key) for job in jobs}) > 1]
    rows: list[dict[str, Any]] = []
    runs = {}
    for number, job in enumerate(jobs):
        run, status = RunRecord.read(folder / str(number)), job_status(folder / str(number))
        row = {"job": number} | {key: job.get(key) for key in varied} | {"status": status}
        if status == "finished":
            row |= run.result["metrics"]
        rows.append(row)
        label = " ".join(f"{key.rsplit('.', 1)[-1]}={job.get(key)}" for key in varied) or f"job {number}"
        if run.rows:
            runs[label] = run
    metrics = list(dict.fromkeys(k for row in rows for k in row if k not in ("job", "status", *varied)))
    columns = ["job", *varied, "status", *metrics]
    text = markdown(columns, rows)
    sections = [html_table(columns, rows)]
    averaged = _over_seeds(rows, varied, metrics)
    if averaged:
        names = [*(key for key in varied if key != "seed"), "seeds", *metrics]
        text += "\n\nMean ± sample standard deviation over seeds:\n\n" + markdown(names, averaged)
        sections += ["<h2>Mean ± sample standard deviation over seeds</h2>", html_table(names, averaged)]
    table = folder / "sweep.md"
    table.write_text(text + "\n", encoding="utf-8")
    written = {"table": table, "csv": write_csv(columns, rows, folder / "sweep.csv")}
    if runs:
        written["curves"] = draw_loss(runs, folder / "curves.png")
        sections.insert(0, html_picture(written["curves"], "loss over optimiser steps"))
    written["report"] = folder / "report.html"
    written["report"].write_text(html_page(folder.name, f"{len(jobs)} jobs", sections), encoding="utf-8")
    return written


def _over_seeds(rows: list[dict[str, Any]], varied: list[str], metrics: list[str]) -> list[dict[str, Any]]:
    """One row for each choice of everything but the seed; empty where seeds were not swept."""
    if "seed" not in varied:
        return []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    others = [key for key in varied if key != "seed"]
    for row in rows:
        if row["status"] == "finished":
            groups.setdefault(tuple(row[key] for key in others), []).append(row)
    averaged = []
    for choice, members in groups.items():
        line: dict[str, Any] = dict(zip(others, choice, strict=True)) | {"seeds": len(members)}
        for metric in metrics:
            values = [m[metric] for m in members if m.get(metric) is not None]
            if values:
                spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
                line[metric] = f"{statistics.mean(values):.5g}{spread}"
        averaged.append(line)
    return averaged

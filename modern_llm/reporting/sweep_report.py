"""The end of a sweep: one table of what differed and every final metric, means over seeds, and the curves."""

from __future__ import annotations

from pathlib import Path

from modern_llm.files import read_json
from modern_llm.reporting.comparison.compare import Comparison, counted
from modern_llm.reporting.comparison.text import comparison_tables, write_comparison_csv
from modern_llm.reporting.curves import draw_loss
from modern_llm.reporting.pages.blocks import write_page
from modern_llm.reporting.pages.comparison import comparison_page
from modern_llm.reporting.pages.search import draw_search, search_section
from modern_llm.reporting.record import RunRecord


def write_sweep_report(folder: Path) -> dict[str, Path]:
    """Write `sweep.md`, `sweep.csv`, `curves.png` and `report.html`, however far the sweep is; of a search also
    `history.png`, `importances.png` and `slices.png`.

    Args:
        folder: of the sweep, which has ended or was stopped: no job is running.

    Returns:
        What was written, by name.
    """
    jobs = [dict(o.split("=", 1) for o in job if "=" in o) for job in read_json(folder / "sweep.json")["jobs"]]
    keys = list(dict.fromkeys(key for job in jobs for key in job))
    varied = [key for key in keys if len({job.get(key) for job in jobs}) > 1]
    runs = [RunRecord.read(folder / str(number)) for number in range(len(jobs))]
    choices = [{key: job[key] for key in varied if key in job} for job in jobs]
    compared = Comparison(runs, [str(n) for n in range(len(jobs))], kind="job", choices=choices)

    table = folder / "sweep.md"
    table.write_text(comparison_tables(compared) + "\n", encoding="utf-8")
    written = {"table": table, "csv": write_comparison_csv(compared, folder / "sweep.csv", further=False)}
    labels = [
        " ".join(f"{key.rsplit('.', 1)[-1]}={job[key]}" for key in job) or f"job {n}" for n, job in enumerate(choices)
    ]
    curves = {label: run for label, run in zip(labels, runs, strict=True) if run.rows}
    if curves:
        written["curves"] = draw_loss(curves, folder / "curves.png")
    pictures = draw_search(folder)
    written |= pictures
    first = [search_section(folder, pictures)]
    page = comparison_page(compared, f"Sweep {folder.name}", counted(len(jobs), "job"), first)
    written["report"] = write_page(folder / "report.html", page)
    return written

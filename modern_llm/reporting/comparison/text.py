"""A comparison as Markdown and as CSV."""

from __future__ import annotations

from pathlib import Path

from modern_llm.reporting.comparison.compare import Comparison
from modern_llm.reporting.comparison.differences import setting_text
from modern_llm.reporting.comparison.notices import notices
from modern_llm.reporting.tables import markdown, markdown_text, visible, write_csv


def comparison_tables(compared: Comparison) -> str:
    """The runs, and the means over seeds, as Markdown tables."""
    text = markdown([compared.kind, *compared.main_settings, "status", *compared.metrics], compared.rows)
    if compared.seeds_vary:
        means = compared.means()
        keys = [key for key in compared.main_settings if any(key in group.settings for group, _ in means)]
        columns = [*keys, "seeds", *compared.metrics]
        rows = [
            group.settings | {"seeds": len(group.counted)} | {metric: str(mean) for metric, mean in own.items()}
            for group, own in means
        ]
        text += f"\n\nMean ± sample standard deviation over seeds:\n\n{markdown(columns, rows)}"
    return text


def comparison_markdown(compared: Comparison, title: str, note: str) -> str:
    """What the page says, without curves and samples, as Markdown."""
    told = notices(compared)
    parts = [f"# {markdown_text(title)}", markdown_text(note)]
    parts += ["\n".join(f"- {markdown_text(message)}" for message in told)] if told else []
    parts.append(comparison_tables(compared))
    same = []
    for key, value, where in compared.configuration.same:
        line = f"- {markdown_text(key)}: {markdown_text(setting_text(value))}"
        same.append(f"{line} (where {markdown_text(where)})" if where else line)
    parts += ["## The same for all", "\n".join(same)] if same else []
    commands = []
    for label, run in zip(compared.labels, compared.runs, strict=True):
        commands += [f"    # {' '.join(visible(label).split())}", f"    {run.command}"] if run.command else []
    parts += ["## Run them again", "\n".join(commands)] if commands else []
    return "\n\n".join(parts) + "\n"


def write_comparison_csv(compared: Comparison, path: Path, further: bool = True) -> Path:
    """Every differing setting and every metric with full precision.

    Args:
        path: of the file.
        further: with bounds of metrics, and when, with which code and by which command a run was made.
    """
    columns = [compared.kind, *compared.settings, "status", *compared.metrics]
    if not further:
        return write_csv(columns, compared.rows, path)
    known = dict.fromkeys(name for run in compared.finished.values() for name in run.metrics)
    bounds = [name for name in known if name not in compared.metrics]
    rows = []
    for run, row in zip(compared.runs, compared.rows, strict=True):
        first, last = (run.sittings[0], run.sittings[-1]) if run.sittings else ({}, {})
        made = {"started": first.get("time"), "code": last.get("code"), "command": run.command}
        rows.append(row | made | {"folder": str(run.folder)})
    return write_csv([*columns, *bounds, "started", "code", "command", "folder"], rows, path)

"""The page of one run, and the parts that it shares with the page of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modern_llm.reporting.curves import curve_data, draw_loss
from modern_llm.reporting.metric_names import headline, is_bound
from modern_llm.reporting.pages import blocks
from modern_llm.reporting.pages.blocks import Cell
from modern_llm.reporting.record import RunRecord, overrides_of
from modern_llm.reporting.tables import shown, write_csv

_ERRORS_SHOWN = 200


def write_run_report(folder: Path) -> dict[str, Path]:
    """Write `report.html`, and where the run has rows of metrics `metrics.csv` and `loss.png`, from what it left.

    Any task's `result.json` is told: `metrics` (name -> number, an interval's ends as `<name>_low` and `<name>_high`),
    and where they are there `headline` (names of the metrics for the cards), `samples` (dicts with `prompt` and
    `text`), `errors` (dicts, a row each), `pictures` (title -> name of a PNG file beside it), `tables` (title -> dicts,
    a row each), `notes` (texts), `protocol` and `perplexity_protocol` (what to know of the figures), `runtime`,
    `data_fingerprints`.

    Args:
        folder: of a run; of an unfinished one, what is there is told.

    Returns:
        What was written, by name.
    """
    run = RunRecord.read(folder)
    written = {}
    if run.series("loss")[0] or run.series("validation_loss")[0]:
        written["curve"] = draw_loss({folder.name: run}, folder / "loss.png")
    if run.rows:
        columns = list(dict.fromkeys(key for row in run.rows for key in row))
        written["metrics"] = write_csv(columns, run.rows, folder / "metrics.csv")
    written["report"] = blocks.write_page(folder / "report.html", _page(run))
    return written


def _page(run: RunRecord) -> str:
    result, metrics = run.result, run.metrics
    data = curve_data([run])
    rows = [{"metric": name, "value": metric_cell(run, name)} for name in metrics if not is_bound(name, metrics)]
    samples = [sample for sample in result.get("samples") or [] if isinstance(sample, dict)]
    errors = [row for row in result.get("errors") or [] if isinstance(row, dict)]
    shown_errors = [
        {k: v if isinstance(v, int | float) else str(v) for k, v in e.items()} for e in errors[:_ERRORS_SHOWN]
    ]
    error_columns = list(dict.fromkeys(key for row in shown_errors for key in row))
    notes = [*([f"failed: {run.why}"] if run.failure else []), *run.notes, *map(str, result.get("notes") or [])]
    sections = [
        blocks.cards({name: metric_cell(run, name) for name in headline(result, metrics)}),
        blocks.notices(notes),
        blocks.section("Curves", curve_figure(data, [run.folder.name], {}) if data["metrics"] else ""),
        *(
            blocks.section(title, blocks.picture(run.folder / name, title))
            for title, name in (result.get("pictures") or {}).items()
            if isinstance(name, str) and Path(name).name == name and (run.folder / name).is_file()
        ),
        blocks.section("Samples", *(blocks.sample(s.get("prompt", ""), s.get("text", "")) for s in samples)),
        blocks.section("Final metrics", blocks.table(["metric", "value"], rows)),
        *(
            blocks.section(title, blocks.table(list(table[0]) if table else [], table))
            for title, table in (result.get("tables") or {}).items()
        ),
        blocks.section(
            "Errors",
            blocks.table(error_columns, shown_errors),
            note=f"The first {_ERRORS_SHOWN} of {len(errors):,}" if len(errors) > _ERRORS_SHOWN else "",
        ),
        blocks.section("How it was measured", blocks.facts(result.get("protocol") or {})),
        blocks.section("How perplexity was measured", blocks.facts(result.get("perplexity_protocol") or {})),
        blocks.section("Where it ran", blocks.facts(environment(run))),
        blocks.section("Run it again", command_of(run)),
        blocks.section("Configuration", blocks.details("config.yaml", f"<pre>{blocks.text(run.config)}</pre>")),
    ]
    started = str(run.sittings[0].get("time", "")) if run.sittings else ""
    return blocks.page(run.folder.name, ", ".join(filter(None, [run.status, started])), sections)


def environment(run: RunRecord) -> dict[str, Any]:
    """Where, with what and on which data a run ran, its last sitting counting."""
    last = run.sittings[-1] if run.sittings else {}
    found = {key: last[key] for key in ("python", "platform", "packages", "code") if key in last}
    return found | {key: run.result[key] for key in ("runtime", "data_fingerprints") if key in run.result}


def metric_cell(run: RunRecord, metric: str, kind: str = "") -> Cell:
    """A final metric with its interval, where the run measured one."""
    low, high = run.metrics.get(f"{metric}_low"), run.metrics.get(f"{metric}_high")
    interval = f"{shown(low)} to {shown(high)}" if low is not None and high is not None else ""
    return Cell(run.metrics[metric], note=interval, title=repr(run.metrics[metric]), kind=kind)


def command_of(run: RunRecord) -> str:
    """The command that makes a run again as HTML, and what must be known with it."""
    parts = [blocks.command(run.command)]
    if code := (run.sittings[-1].get("code") if run.sittings else None):
        parts.append(f'<p class="note">with the code of {blocks.text(code)}</p>')
    typed = [[o for o in overrides_of(s) if not o.startswith("resume=")] for s in run.sittings]
    if any(overrides != typed[0] for overrides in typed[1:]):
        parts.append(
            '<p class="note">It was continued with other settings; the command has the last ones. Typed were:</p>'
        )
        parts += [f"<pre>{blocks.text(str(s.get('command', '')))}</pre>" for s in run.sittings]
    return "".join(parts)


def curve_figure(data: dict[str, Any], labels: Sequence[str], colours: dict[str, list[str]]) -> str:
    """A place for the page's script to draw curves in, and their data.

    Args:
        data: of `curve_data`.
        labels: of the runs.
        colours: what else than the run itself can decide a curve's colour: name -> text for each run.
    """
    content = data | {"labels": list(labels), "colours": colours}
    return (
        '<figure class="curves"><div class="controls"></div><div class="plot"></div><div class="legend"></div>'
        f'<figcaption class="note"></figcaption></figure>{blocks.embedded("curve-data", content)}'
        '<noscript><p class="note">Curves are drawn by the page\'s script, which is switched off.</p></noscript>'
    )

"""The page of a comparison: cards, notices, tables, curves, samples, commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from modern_llm.reporting.comparison.compare import Comparison, Group, counted, progress
from modern_llm.reporting.comparison.differences import setting_text, short_names
from modern_llm.reporting.comparison.intervals import differ
from modern_llm.reporting.comparison.notices import notices
from modern_llm.reporting.curves import curve_data
from modern_llm.reporting.pages import blocks
from modern_llm.reporting.pages.blocks import Cell, Column
from modern_llm.reporting.pages.run import command_of, curve_figure, metric_cell

# What the samples of one page may take together.
_SAMPLE_CHARACTERS = 2_000_000
_SAMPLES = 5_000
_FILTER = (
    '<label>Filter <input type="search" id="filter" placeholder="words that a row must have"></label>'
    '<output id="count"></output>'
)
_ALL_COLUMNS = '<button type="button" id="columns" aria-pressed="false">all columns</button>'


def comparison_page(compared: Comparison, title: str, note: str, first: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        compared: the runs.
        title: of the page.
        note: below the title.
        first: sections that stand before the runs.
    """
    several = len(compared.runs) > 1
    sections = [
        _cards(compared),
        blocks.notices(notices(compared)),
        *first,
        blocks.section(
            counted(len(compared.runs), compared.kind),
            f'<p class="tools">{_FILTER if several else ""}{_ALL_COLUMNS}</p>',
            _runs_table(compared),
            note="Settings that differ, then final metrics; the best value is marked. A click on a head sorts."
            if several
            else "",
        ),
        blocks.section(
            "Over seeds",
            _seeds_table(compared),
            note="Mean ± sample standard deviation over seeds, and below it the 95 % interval of the mean (Student's "
            "t). Marked are the best mean and, with ≈, those that do not differ from it beyond noise (Welch's test at "
            "5 %, each by itself). One seed says nothing about noise.",
        ),
        blocks.section("Curves", _curves(compared)),
        blocks.section("The same for all" if several else "What it was", _same_tables(compared)),
        blocks.section("Where environments differ", _environment_table(compared)),
        blocks.section("Samples", _samples(compared)),
        blocks.section(
            "Run them again" if several else "Run it again", blocks.details("Commands", _commands(compared))
        ),
    ]
    return blocks.page(title, note, sections)


def _cards(compared: Comparison) -> str:
    """How the runs ended, and the best of every headline metric."""
    figures: dict[str, Any] = {}
    for i in range(len(compared.runs)):
        figures[compared.status(i)] = figures.get(compared.status(i), 0) + 1
    for metric in compared.headline[:12]:
        if len(compared.runs) == 1:
            figures[metric] = metric_cell(compared.runs[0], metric)
        for i in sorted(compared.best_runs(metric))[:1] if compared.yardsticks(metric) == 1 else []:
            figures[f"best {metric}"] = Cell(
                compared.runs[i].metrics[metric], note=f"{compared.kind} {compared.labels[i]}"
            )
    return blocks.cards(figures)


def _runs_table(compared: Comparison) -> str:
    names = short_names(list(compared.settings))
    columns = [Column(compared.kind), Column("status", extra=True)]
    columns += [Column(key, names[key], extra=key not in compared.main_settings) for key in compared.settings]
    columns += [Column(metric, extra=metric not in compared.headline) for metric in compared.metrics]
    columns += [Column(name, extra=True) for name in ("started", "sittings", "code")]
    best = {metric: compared.best_runs(metric) for metric in compared.metrics}
    rows = []
    for i, run in enumerate(compared.runs):
        status = compared.status(i)
        how = "" if status == "finished" else f"{status}: {run.why or progress(run)}"
        label = Cell(
            compared.labels[i], note=how[:80] + ("…" if len(how) > 80 else ""), title=str(run.folder), kind=status
        )
        row: dict[str, Any] = {compared.kind: label, "status": status}
        row |= {key: _setting(values[i]) for key, values in compared.settings.items() if i in values}
        if i in compared.finished:
            measured = [metric for metric in compared.metrics if metric in run.metrics]
            row |= {metric: metric_cell(run, metric, "best" if i in best[metric] else "") for metric in measured}
        first, last = (run.sittings[0], run.sittings[-1]) if run.sittings else ({}, {})
        row |= {"started": first.get("time"), "sittings": len(run.sittings) or None, "code": last.get("code")}
        rows.append(row)
    return blocks.table(columns, rows, identity="runs", runs=range(len(rows)))


def _seeds_table(compared: Comparison) -> str:
    """Mean, spread and interval over seeds; empty where no seeds were varied."""
    if not compared.seeds_vary:
        return ""
    means, names = compared.means(), short_names(list(compared.settings))
    keys = [key for key in compared.settings if any(key in group.settings for group, _ in means)]
    columns = [Column(key, names[key], extra=key not in compared.main_settings) for key in keys] or [Column("runs")]
    columns += [Column("seeds"), *(Column(m, extra=m not in compared.headline) for m in compared.metrics)]
    rows: list[dict[str, Any]] = [
        {"runs": "all"} | {k: _setting(v) for k, v in group.settings.items()} | {"seeds": len(group.counted)}
        for group, _ in means
    ]
    for metric in compared.metrics:
        known = {i: own[metric] for i, (_, own) in enumerate(means) if metric in own}
        # Runs of a group share their yardstick: the first one stands for all.
        first = {i: means[i][0].counted[0] for i in known}
        leaders = compared.leaders({first[i]: mean.mean for i, mean in known.items()}, metric)
        group_of = {place: i for i, place in first.items()}
        for i, mean in known.items():
            leader = known[group_of[leaders[first[i]]]] if first[i] in leaders else None
            kind = ""
            if leader is not None:
                kind = "best" if mean.mean == leader.mean else "near" if differ(mean, leader) is False else ""
            rows[i][metric] = Cell(f"{mean}{' ≈' if kind == 'near' else ''}", mean.mean, mean.interval_text, kind=kind)
    return blocks.table(columns, rows, identity="seeds")


def _same_tables(compared: Comparison) -> str:
    """What does not differ, folded."""
    found = [{"key": k, "value": setting_text(v), "where": where} for k, v, where in compared.configuration.same]
    columns = ["key", "value", *(["where"] if any(row["where"] for row in found) else [])]
    around = [{"what": key, "value": setting_text(value)} for key, value, _ in compared.environment.same]
    return blocks.details(
        f"Configuration: {counted(len(found), 'setting')}", blocks.table(columns, found)
    ) + blocks.details("Environment: code, packages, machine, data", blocks.table(["what", "value"], around))


def _environment_table(compared: Comparison) -> str:
    varying = compared.environment.varying
    rows = [
        {compared.kind: compared.labels[i]}
        | {key: setting_text(values[i]) for key, values in varying.items() if i in values}
        for i in range(len(compared.runs))
    ]
    return blocks.table([compared.kind, *varying], rows, runs=range(len(rows))) if varying else ""


def _samples(compared: Comparison) -> str:
    """The runs' texts by prompt, so that one can be read against the other."""
    prompts: dict[str, list[tuple[int, Any]]] = {}
    for i, run in enumerate(compared.runs):
        for sample in run.result.get("samples") or []:
            if isinstance(sample, dict):
                prompts.setdefault(str(sample.get("prompt", "")), []).append((i, sample.get("text", "")))
    limit = max(200, min(5000, _SAMPLE_CHARACTERS // max(sum(map(len, prompts.values())), 1)))
    parts: list[str] = []
    told = 0
    for prompt, texts in prompts.items():
        if told + len(texts) > _SAMPLES and parts:
            parts.append(f'<p class="note">{len(prompts) - len(parts):,} more prompts are in the result.json files</p>')
            break
        told += len(texts)
        inner = [
            f'<div data-run="{i}"><h3>{blocks.text(compared.labels[i])}</h3>{blocks.sample(prompt, text, limit)}</div>'
            for i, text in texts
        ]
        first_line = prompt.strip().split("\n")[0]
        name = first_line[:80] + ("…" if len(first_line) > 80 else "") or "(empty prompt)"
        parts.append(blocks.details(f"{name} ({counted(len(texts), 'text')})", *inner))
    return "".join(parts)


def _commands(compared: Comparison) -> str:
    return "".join(
        f'<div data-run="{i}"><h3>{blocks.text(label)}</h3>{command_of(run)}</div>'
        for i, (label, run) in enumerate(zip(compared.labels, compared.runs, strict=True))
    )


def _curves(compared: Comparison) -> str:
    data = curve_data(compared.runs)
    if not data["metrics"]:
        return ""
    names, places = short_names(list(compared.settings)), range(len(compared.runs))
    colours: dict[str, list[str]] = {}
    if compared.seeds_vary:
        label_of = {
            i: _group_label(group, names, compared.main_settings) for group in compared.groups for i in group.members
        }
        colours["all but the seed"] = [label_of.get(i, "") for i in places]
    for key in compared.main_settings:
        colours[names[key]] = [compared.settings[key].get(i, "") for i in places]
    return curve_figure(data, compared.labels, colours)


def _setting(text: str) -> Cell:
    """A setting; a number is shown as it is written and sorted as a number."""
    try:
        number = json.loads(text)
    except ValueError:
        return Cell(text)
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e300
    return Cell(text, order=number if is_number else None)


def _group_label(group: Group, names: dict[str, str], keys: Sequence[str]) -> str:
    return ", ".join(f"{names[key]}={group.settings[key]}" for key in keys if group.settings.get(key)) or "all runs"

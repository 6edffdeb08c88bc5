"""The page of an ablation: effects with their intervals, curves of the arms, the table, and what repeats it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modern_llm.reporting.comparison.ablation import A_A, BASELINE, Outcome, Run
from modern_llm.reporting.comparison.intervals import Mean
from modern_llm.reporting.pages import blocks
from modern_llm.reporting.pages.blocks import Cell
from modern_llm.reporting.pages.run import environment
from modern_llm.reporting.record import RunRecord, is_number
from modern_llm.reporting.tables import markdown, write_csv

_SIGNS = {"better": "best", "worse": "failed"}


@dataclass(frozen=True)
class Told:
    """What the page says besides the outcomes.

    Attributes:
        metric: that is compared.
        budget: what is equal in all arms.
        lower: which way the metric is better.
        factors: arm -> key -> factor that tuning found.
        trials: of the tuning, a row each.
        overrides: arm -> overrides of its runs, at the first size.
        tuned: keys that were tuned.
    """

    metric: str
    budget: str
    lower: bool
    factors: Mapping[str, Mapping[str, float]]
    trials: Sequence[dict[str, Any]]
    overrides: Mapping[str, Sequence[str]]
    tuned: Sequence[str]


def write_ablation_report(folder: Path, found: Sequence[Outcome], runs: Sequence[Run], told: Told) -> dict[str, Path]:
    """Write `table.md`, `table.csv`, `runs.csv`, `effects.png`, `curves.png` and `report.html`.

    Args:
        folder: of the ablation.
        found: what is known of every arm.
        runs: all runs.
        told: what else the page says.

    Returns:
        What was written, by name.
    """
    rows = [_row(outcome, told) for outcome in found]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    remarks = _remarks(found, told)
    table = folder / "table.md"
    notes = "\n".join(f"- {remark}" for remark in remarks)
    table.write_text(f"{markdown(columns, rows)}\n\n{notes}\n", encoding="utf-8")
    written = {"table": table, "csv": write_csv(*_numbers(found, told), folder / "table.csv")}
    each = [
        {"size": r.size, "arm": r.arm, "seed": r.seed, "share": r.share, told.metric: r.value,
         "status": r.record.status, "folder": str(r.record.folder.relative_to(folder))} for r in runs
    ]  # fmt: skip
    written["runs"] = write_csv(list(each[0]), each, folder / "runs.csv")
    if any(o.differences is not None for o in found):
        written["effects"] = _draw_effects(found, told, folder / "effects.png")
    written["curves"] = _draw_curves(runs, folder / "curves.png")
    record = RunRecord.read(folder)
    sections = [
        blocks.notices([*(f"{o.name} {o.said}" for o in found if o.failed), *remarks]),
        *(
            blocks.section(title, blocks.picture(written[name], title), note=note)
            for name, title, note in (
                (
                    "effects",
                    "Effects",
                    f"Paired differences of {told.metric} to the baseline with 95 % intervals; "
                    f"{'left' if told.lower else 'right'} of the line is better. Shaded: the A/A arm.",
                ),
                ("curves", "Curves", "Mean of the arms as evaluated during training, with its 95 % interval."),
            )
            if name in written
        ),
        blocks.section(
            "Verdicts",
            blocks.table(columns, [_marked(row, o) for row, o in zip(rows, found, strict=True)]),
            note="p: of Student's paired test, adjusted for all arms of a size (Holm). Worth in steps: how "
            "much longer the baseline would have to be trained for the same.",
        ),
        blocks.section("Tuning", blocks.table(list(told.trials[0]) if told.trials else [], list(told.trials))),
        blocks.section("All runs", blocks.table(list(each[0]), each)),
        blocks.section("Where it ran", blocks.facts(environment(record))),
        blocks.section("Repeat it", blocks.command(_repeat(record, told))),
        blocks.section("Configuration", blocks.details("config.yaml", f"<pre>{blocks.text(record.config)}</pre>")),
    ]
    title = f"Ablation {folder.name}"
    written["report"] = blocks.write_page(folder / "report.html", blocks.page(title, _headline(found), sections))
    return written


def _headline(found: Sequence[Outcome]) -> str:
    """The verdicts in one line."""
    return "; ".join(f"{o.name}: {o.said}" for o in found if o.arm not in (BASELINE, A_A))


def _row(o: Outcome, told: Told) -> dict[str, Any]:
    """A row of the table as a person reads it."""
    d = o.differences
    row: dict[str, Any] = {"arm": o.arm}
    if o.size:
        row["size"] = o.size
    row[told.metric] = "" if o.values is None else str(o.values)
    row["difference"] = "" if d is None else _signed(d)
    row["p"] = "" if o.p is None else f"{o.p:.2g}"
    row["worth in steps"] = "" if o.worth is None else _worth(o)
    for name in ("tokens", "flops", "seconds"):
        row[name] = o.costs.get(name)
    if told.tuned:
        row["tuned"] = ", ".join(
            f"{key.rsplit('.', 1)[-1]} x {f:.3g}" for key, f in told.factors.get(o.arm, {}).items()
        )
    if o.trend is not None:
        row["for twice the size"] = _signed(o.trend)
    row["verdict"] = o.said
    return row


def _signed(d: Mean) -> str:
    if d.interval is None:
        return f"{d.mean:+.3g}"
    digits = 4 if not d.deviation else max(0, 2 - math.floor(math.log10(max(abs(d.interval[1] - d.interval[0]), 1e-9))))
    return f"{d.mean:+.{digits}f} ({d.interval[0]:+.{digits}f} to {d.interval[1]:+.{digits}f})"


def _worth(o: Outcome) -> str:
    assert o.worth is not None
    middle, low, high = (f"{100 * share:+.0f} %" for share in o.worth)
    return f"{middle} ({low} to {high})" + ("" if o.inside else ", beyond the lengths that were run")


def _numbers(found: Sequence[Outcome], told: Told) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the CSV file."""
    rows = []
    for o in found:
        row: dict[str, Any] = {"arm": o.arm, "size": o.size, "seeds": o.seeds, "failed": sum(o.failed.values())}
        for name, mean in (("value", o.values), ("difference", o.differences), ("trend", o.trend)):
            low, high = mean.interval if mean is not None and mean.interval is not None else (None, None)
            row |= {name: None if mean is None else mean.mean, f"{name}_low": low, f"{name}_high": high}
        row |= dict(zip(("worth", "worth_low", "worth_high"), o.worth or (None, None, None), strict=True))
        row |= {"p_holm": o.p, "smallest_visible": o.smallest, "seeds_for_what_matters": o.enough, **o.costs}
        row |= {f"factor_{key}": factor for key, factor in told.factors.get(o.arm, {}).items()}
        rows.append(row | {"verdict": o.said})
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _remarks(found: Sequence[Outcome], told: Told) -> list[str]:
    """What must be known before the numbers are believed."""
    remarks = [
        f"Equal in all arms: {told.budget}; data and their order by seed, and initial weights where shapes allow."
    ]
    if told.tuned:
        edges = [row["arm"] for row in told.trials if row.get("at_edge")]
        remarks.append(f"Tuned for every arm with {len(told.trials) // max(len(told.factors), 1)} trials, on seeds of "
                       f"their own: {', '.join(told.tuned)}.")  # fmt: skip
        if edges:
            remarks.append(f"The best trial of {', '.join(dict.fromkeys(edges))} lies at the edge of what was tried: "
                           "with wider task.tuning.factors a better one may be found.")  # fmt: skip
    else:
        remarks.append("Nothing was tuned for the arms: an arm that needs another rate is judged at the baseline's.")
    for o in found:
        if o.arm == A_A and o.differences is not None and o.differences.interval is not None:
            low, high = o.differences.interval
            at = f" ({o.size})" if o.size else ""
            outside = "" if low <= 0 <= high else "; 0 lies outside, which happens to one in twenty"
            remarks.append(f"A/A{at}: the baseline under other seeds differs by {_signed(o.differences)}{outside}.")
    for o in found:
        if o.arm in (BASELINE, A_A) or o.smallest is None:
            continue
        more = "" if o.enough is None else f"; {o.enough} seeds would show what matters"
        remarks.append(f"{o.name}: so many seeds find an effect of {o.smallest:.2g} with a chance of 80 %{more}.")
    return remarks


def _marked(row: dict[str, Any], o: Outcome) -> dict[str, Any]:
    word = "failed" if o.failed else _SIGNS.get(o.words.word if o.words is not None else "", "")
    order = None if o.differences is None else o.differences.mean
    return row | {"verdict": Cell(o.said, kind=word), "difference": Cell(row["difference"], order=order)}


def _repeat(record: RunRecord, told: Told) -> str:
    """Command, code, and the overrides of every arm with what was tuned."""
    last = record.sittings[-1] if record.sittings else {}
    lines = [record.command, "", f"# code {last.get('code')}, python {last.get('python')}"]
    lines.append(
        "# " + ", ".join(f"{name} {version}" for name, version in (last.get("packages") or {}).items() if version)
    )
    for arm, overrides in told.overrides.items():
        factors = "".join(f"  {key} x {factor:.6g}" for key, factor in told.factors.get(arm, {}).items())
        lines.append(f"# {arm}: {' '.join(overrides)}{factors}")
    return "\n".join(lines)


def _draw_effects(found: Sequence[Outcome], told: Told, path: Path) -> Path:
    """A forest plot: a line an arm and size, with the A/A arm's interval as a band behind."""
    from matplotlib.figure import Figure

    drawn = [o for o in found if o.differences is not None and o.arm != A_A]
    sizes = list(dict.fromkeys(o.size for o in drawn))
    arms = list(dict.fromkeys(o.arm for o in drawn))
    figure = Figure(figsize=(8, 1.4 + 0.34 * len(arms) * max(len(sizes), 1)), layout="constrained")
    axes = figure.subplots()
    noise = [o.differences.interval for o in found if o.arm == A_A and o.differences is not None]
    spans = [interval for interval in noise if interval is not None]
    if spans:
        axes.axvspan(min(low for low, _ in spans), max(high for _, high in spans), color="0.9", zorder=0)
    axes.axvline(0, color="0.4", linewidth=1)
    for o in drawn:
        assert o.differences is not None
        place = -arms.index(o.arm) - 0.6 * (sizes.index(o.size) + 0.5) / len(sizes) + 0.3
        low, high = o.differences.interval or (o.differences.mean, o.differences.mean)
        colour = f"C{sizes.index(o.size)}"
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
        axes.plot(o.differences.mean, place, "o", color=colour, markersize=5)
        axes.annotate(o.said if len(o.said) < 48 else o.said[:45] + "…", (high, place), textcoords="offset points",
                      xytext=(6, -3), fontsize="x-small", color="0.35")  # fmt: skip
    axes.set_yticks([-n for n in range(len(arms))], [arm.replace("$", r"\$") for arm in arms])
    axes.set(xlabel=f"difference of {told.metric} to the baseline", ylim=(-len(arms) + 0.4, 0.6))
    ends = [end for o in drawn if o.differences is not None for end in o.differences.interval or (o.differences.mean,)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = high - low or 1.0
    axes.set_xlim(low - 0.1 * room, high + 0.7 * room)  # the A/A arm's band may be wider; at the right stand words
    axes.grid(alpha=0.3, axis="x")
    if len(sizes) > 1:
        handles = [axes.plot([], [], "o-", color=f"C{n}", label=size)[0] for n, size in enumerate(sizes)]
        axes.legend(handles=handles, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _draw_curves(runs: Sequence[Run], path: Path) -> Path:
    """What is monitored during training, by arm: mean over seeds, and the interval of the mean; a panel a size."""
    from matplotlib.figure import Figure

    whole = [run for run in runs if run.share == 1 and run.arm != A_A]
    sizes = list(dict.fromkeys(run.size for run in whole))
    figure = Figure(figsize=(max(6.5, 5 * len(sizes)), 4), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    monitored = _monitored(whole)
    for axes, size in zip(panels, sizes, strict=True):
        for number, arm in enumerate(dict.fromkeys(run.arm for run in whole)):
            points: dict[int, list[float]] = {}
            for run in whole:
                if run.size == size and run.arm == arm:
                    for step, value in zip(*run.record.series(monitored), strict=True):
                        points.setdefault(step, []).append(value)
            steps = sorted(points)
            means = [Mean.of(points[step]) for step in steps]
            label = arm.replace("$", r"\$")
            axes.plot(steps, [m.mean for m in means], label=label, color=f"C{number % 10}", linewidth=1.2)
            bands = [m.interval or (m.mean, m.mean) for m in means]
            axes.fill_between(steps, [b[0] for b in bands], [b[1] for b in bands], color=f"C{number % 10}", alpha=0.15,
                              linewidth=0)  # fmt: skip
        axes.set(xlabel="optimiser step", ylabel=monitored, title=size)
        axes.grid(alpha=0.3)
    if panels[0].get_legend_handles_labels()[0]:
        panels[-1].legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _monitored(runs: Sequence[Run]) -> str:
    """The first metric that evaluations during training give."""
    names = (name for run in runs for row in run.record.rows for name in row if is_number(row[name]))
    return next((name for name in names if name.startswith("validation_")), "loss")

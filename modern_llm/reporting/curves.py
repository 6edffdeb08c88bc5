"""Curves of runs: as data for the page's own drawing, and as a picture."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modern_llm.reporting.record import RunRecord, is_number

AXES = ("step", "tokens", "seconds")
# Numbers that a page may hold for its curves; at about 8 characters each, a few megabytes.
_NUMBERS_PER_PAGE = 900_000


def curve_data(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Every metric of every run over steps, tokens and seconds, thinned so that a page can hold and draw it.

    A long curve keeps, of every so many rows, the smallest and the largest value, so that no spike is lost; rows
    without a finite value stay as gaps.

    Returns:
        `metrics`: names; `runs`: for each run `step`, `tokens` and `seconds` of the rows that are kept (None where
        unknown) and `series`: metric -> [places of its values among these rows, values]; `thinned`: the largest
        number of rows that two kept values stand for, 1 where nothing was left out.
    """
    names = [_metric_names(run) for run in runs]
    curves = sum(map(len, names))
    # A kept value costs itself, its place and a share of the row's three axes.
    values_per_curve = min(4000, max(40, _NUMBERS_PER_PAGE // (3 * max(curves, 1))))
    drawn, thinned = [], 1
    for run, metrics in zip(runs, names, strict=True):
        rows = [row for row in run.rows if is_number(row.get("step"))]
        kept: dict[str, list[int]] = {}
        for metric in metrics:
            places = [place for place, row in enumerate(rows) if metric in row]
            values = [rows[place][metric] for place in places]
            kept[metric] = [places[i] for i in thin(values, values_per_curve)]
            thinned = max(thinned, _bucket(len(values), values_per_curve))
        every = sorted({place for places in kept.values() for place in places})
        place_of = {place: number for number, place in enumerate(every)}
        series = {
            metric: [[place_of[p] for p in places], [_rounded(rows[p][metric]) for p in places]]
            for metric, places in kept.items()
        }
        drawn.append({"series": series} | {axis: _axis(rows, every, axis) for axis in AXES})
    order = {name: None for metrics in names for name in metrics}
    return {"metrics": sorted(order, key=_importance), "runs": drawn, "thinned": thinned}


def thin(values: Sequence[Any], most: int) -> list[int]:
    """Indices that stay when a curve keeps about `most` values: the first, the last, and of every bucket the smallest,
    the largest and one that is no finite number."""
    size = _bucket(len(values), most)
    if size == 1:
        return list(range(len(values)))
    kept = {0, len(values) - 1}
    for start in range(0, len(values), size):
        bucket = range(start, min(start + size, len(values)))
        finite = [i for i in bucket if is_number(values[i])]
        if finite:
            kept |= {min(finite, key=lambda i: values[i]), max(finite, key=lambda i: values[i])}
        if len(finite) < len(bucket):
            kept.add(next(i for i in bucket if not is_number(values[i])))
    return sorted(kept)


def _bucket(length: int, most: int) -> int:
    """Rows a bucket, of which two values are kept."""
    return 1 if length <= most else -(-2 * length // most)


def _metric_names(run: RunRecord) -> list[str]:
    numbers = {name: None for row in run.rows for name, value in row.items() if is_number(value)}
    return [name for name in numbers if name not in AXES]


def _importance(name: str) -> tuple[int, str]:
    """Losses first, unless rewards are learned from, where they say nothing; what was measured on held-out data next,
    the machine last."""
    if name == "validation_pass_at_1":
        return -1, name
    if name in ("loss", "validation_loss"):
        return 0, name
    return (1 if name.startswith(("validation_", "test_")) else 2 if "loss" in name else 3), name


def _rounded(value: Any) -> float | None:
    """Six significant digits are more than a screen shows."""
    return float(f"{value:.6g}") if is_number(value) else None


def _axis(rows: list[dict[str, Any]], places: list[int], axis: str) -> list[float | None] | None:
    """Where the kept rows stand on an axis. A row that does not say (an evaluation tells its step alone) stands between
    its neighbours, by its step; None for all where no row says."""
    if axis == "step":
        return [rows[place]["step"] for place in places]
    known = [(row["step"], row[axis]) for row in rows if is_number(row.get(axis))]
    if not known:
        return None
    steps = [step for step, _ in known]
    found: list[float | None] = []
    for place in places:
        own, step = rows[place].get(axis), rows[place]["step"]
        after = bisect_left(steps, step)
        if is_number(own):
            value = own
        elif after < len(known) and steps[after] == step:
            value = known[after][1]
        elif 0 < after < len(known):
            (s0, v0), (s1, v1) = known[after - 1], known[after]
            value = v0 + (v1 - v0) * (step - s0) / (s1 - s0)
        else:
            value = None
        found.append(value if value is None or isinstance(value, int) else round(value, 2))
    return found


def draw_loss(runs: dict[str, RunRecord], path: Path) -> Path:
    """Training and validation loss over steps, one colour a run.

    Args:
        runs: label -> run.
        path: picture to write; the ending says the format.
    """
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = [f"C{i}" for i in range(10)]
    for number, (label, run) in enumerate(runs.items()):
        colour = colours[number % 10] if len(runs) > 1 else None
        prefix = f"{label}, ".replace("$", r"\$") if len(runs) > 1 else ""  # $ would begin a formula
        steps, losses = run.series("loss")
        label_of_training = None if len(runs) > 1 else "training"
        alpha = 0.35 if len(runs) > 1 else 0.9
        axes.plot(steps, losses, label=label_of_training, color=colour or "C0", alpha=alpha, linewidth=1)
        steps, losses = run.series("validation_loss")
        axes.plot(steps, losses, label=f"{prefix}validation", color=colour or "C1", marker="o", markersize=3)
    axes.set(xlabel="optimiser step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0] and len(runs) <= 20:  # more would cover the curves
        axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def draw_solved(curve: Sequence[dict[str, Any]], path: Path, greedy: float | None = None) -> Path:
    """Share of problems solved over answers per problem, one colour a way of choosing, with its interval.

    Args:
        curve: rows with `k`, `way`, `solved`, `low` and `high`.
        path: picture to write; the ending says the format.
        greedy: share that the greedy answer solves, drawn as a line; None: there is none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, way in enumerate(dict.fromkeys(row["way"] for row in curve)):
        k, solved, low, high = zip(
            *((row["k"], row["solved"], row["low"], row["high"]) for row in curve if row["way"] == way), strict=True
        )
        label = "any right (pass@k)" if way == "pass" else way
        axes.plot(k, solved, label=label, color=f"C{number}", marker="o", markersize=3)
        axes.fill_between(k, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
    if greedy is not None:
        axes.axhline(greedy, label="greedy", color="0.4", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    points = sorted({row["k"] for row in curve})
    axes.set_xticks(points, [str(k) for k in points])
    axes.set(xlabel="answers per problem", ylabel="problems solved", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def draw_reliability(
    rows: Sequence[dict[str, Any]], path: Path, uncalibrated: Sequence[dict[str, Any]] | None = None
) -> Path:
    """A reliability diagram: the share of right answers over the probability of being right, by bins, above the number
    of answers in each.

    Args:
        rows: with `from`, `to`, `answers`, `mean_probability` and `share_right`.
        path: picture to write; the ending says the format.
        uncalibrated: the same of the probabilities before their calibration; None: not drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    axes, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect")
    for given, label, look in ((uncalibrated, "uncalibrated", "0.6"), (rows, "calibrated", "C0")):
        if given is not None:
            predicted, observed = ([row[key] for row in given] for key in ("mean_probability", "share_right"))
            axes.plot(predicted, observed, label=label, color=look, marker="o", markersize=4)
    axes.set(ylabel="observed: share that is right", xlim=(0, 1), ylim=(-0.02, 1.02))
    centres, widths = [(row["from"] + row["to"]) / 2 for row in rows], [0.9 * (row["to"] - row["from"]) for row in rows]
    bars = counts.bar(centres, [row["answers"] for row in rows], widths, color="C0", alpha=0.6)
    counts.bar_label(bars, fontsize="x-small")
    counts.margins(y=0.2)
    counts.yaxis.get_major_locator().set_params(integer=True)
    counts.set(xlabel="predicted: probability of being right", ylabel="answers")
    for part in (axes, counts):
        part.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path

"""A search over settings: its history, what mattered, and the objective along each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modern_llm.files import DamagedError, read_json
from modern_llm.reporting.pages import blocks
from modern_llm.reporting.record import STUDY, is_number
from modern_llm.reporting.tables import shown

_COLOURS = "viridis"  # of trials, early ones dark


def draw_search(folder: Path) -> dict[str, Path]:
    """Draw what `study.json` of a sweep's folder tells.

    Args:
        folder: of the sweep; the pictures are written there.

    Returns:
        The pictures, by name; empty where the sweep is no search or nothing is finished.
    """
    known = _read(folder)
    done = [trial for trial in known.get("trials", []) if is_number(trial.get("value"))]
    if not done:
        return {}
    ahead = [trial for trial in done if trial.get("state") == "complete"]
    written = {"history": _draw_history(known, folder / "history.png")}
    if known.get("importances"):
        written["importances"] = _draw_importances(known["importances"], folder / "importances.png")
    if ahead:
        written["slices"] = _draw_slices(known, ahead, folder / "slices.png")
    return written


def search_section(folder: Path, pictures: dict[str, Path]) -> str:
    """The pictures as a section of the sweep's page; empty where there are none."""
    if not pictures:
        return ""
    known = _read(folder)
    better = "lower" if known.get("direction") == "minimize" else "higher"
    states = [str(trial.get("state")) for trial in known["trials"]]
    told = ", ".join(f"{states.count(state)} {_WORDS.get(state, state)}" for state in dict.fromkeys(states))
    metric = known.get("metric")
    descriptions = {
        "history": f"{metric} of each trial, and the best so far",
        "importances": "share of each setting in how good a trial is",
        "slices": f"{metric} along each setting",
    }
    note = (
        f"{metric}, {better} is better; trials: {told}. Importances are PED-ANOVA's shares (Watanabe et al. 2023), "
        "from finished trials alone; with few trials they say little."
    )
    return blocks.section(
        "Search", *(blocks.picture(path, descriptions[name]) for name, path in pictures.items()), note=note
    )


_WORDS = {"complete": "finished", "fail": "failed", "running": "not finished"}


def _read(folder: Path) -> dict[str, Any]:
    try:
        known = read_json(folder / STUDY)
    except (FileNotFoundError, DamagedError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("trials"), list) else {}


def _draw_history(known: dict[str, Any], path: Path) -> Path:
    """The objective over trials. A pruned trial stands where it was stopped, by the metric it was stopped by."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    complete = [(t["number"], t["value"]) for t in known["trials"] if t["state"] == "complete" and _has_value(t)]
    pruned = [(t["number"], t["value"]) for t in known["trials"] if t["state"] == "pruned" and _has_value(t)]
    choose = min if known.get("direction") == "minimize" else max
    if complete:
        axes.plot(*zip(*complete, strict=True), "o", color="C0", markersize=4, label="finished")
        best = [choose(value for _, value in complete[: place + 1]) for place in range(len(complete))]
        axes.step([number for number, _ in complete], best, where="post", color="C3", linewidth=1, label="best so far")
    if pruned:
        axes.plot(*zip(*pruned, strict=True), "x", color="0.55", markersize=4, label="pruned, when it was stopped")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=known.get("metric"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _draw_importances(importances: dict[str, float], path: Path) -> Path:
    """A bar for each setting, the largest at the top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.35 * len(importances)), layout="constrained")
    axes = figure.subplots()
    names = sorted(importances, key=lambda name: importances[name])
    bars = axes.barh([_label(name) for name in names], [importances[name] for name in names], color="C0", alpha=0.7)
    axes.bar_label(bars, [f"{importances[name]:.2f}" for name in names], padding=3, fontsize="small")
    axes.set(xlabel="importance", xlim=(0, 1.12))
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=120)
    return path


def _draw_slices(known: dict[str, Any], trials: Sequence[dict[str, Any]], path: Path) -> Path:
    """A panel for each setting: the objective of finished trials over its values."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    keys = list(trials[0]["values"])
    across = min(len(keys), 4)
    down = -(-len(keys) // across)
    figure = Figure(figsize=(2.9 * across + 0.8, 2.9 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flat
    drawn = None
    for axes, key in zip(panels, keys, strict=False):
        values = [trial["values"].get(key) for trial in trials]
        scale = known.get("scales", {}).get(key)
        if scale is None:
            order = list(dict.fromkeys(map(str, values)))
            places = [order.index(str(value)) for value in values]
            axes.set_xticks(range(len(order)), [_label(text) for text in order])
            axes.set_xlim(-0.5, len(order) - 0.5)
        else:
            places = values
            _set_scale(axes, scale["low"], scale["high"], scale["log"])
        drawn = axes.scatter(
            places, [trial["value"] for trial in trials], c=[trial["number"] for trial in trials], cmap=_COLOURS, s=16
        )
        axes.set_xlabel(_label(key))
        axes.grid(alpha=0.3)
    for axes in list(panels)[len(keys) :]:
        axes.set_visible(False)
    figure.supylabel(str(known.get("metric")), fontsize="medium")
    if drawn is not None:
        figure.colorbar(drawn, ax=figure.axes, label="trial", ticks=MaxNLocator(integer=True))
    figure.savefig(path, dpi=120)
    return path


def _set_scale(axes: Any, low: float, high: float, is_log: bool) -> None:
    """The whole range that was searched, a little room at both ends."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    if is_log:
        middle, room = (low * high) ** 0.5, (high / low) ** 0.05
        axes.set(xscale="log", xlim=(low / room, high * room))
        axes.set_xticks([low, middle, high], [f"{value:.2g}" for value in (low, middle, high)])
        axes.xaxis.set_minor_locator(NullLocator())
        return
    room = (high - low) * 0.05 or 0.5
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=isinstance(low, int)))


def _has_value(trial: dict[str, Any]) -> bool:
    return is_number(trial.get("value"))


def _label(text: str) -> str:
    """A name short enough for an axis; $ would begin a formula."""
    short = text.rsplit(".", 1)[-1] if "." in text and not text[:1].isdigit() else text
    return shown(short).replace("$", r"\$")[:28]

"""What must be known before the numbers of several runs are read against each other."""

from __future__ import annotations

import time
from collections.abc import Sequence

from modern_llm.evaluation.metrics.registry import direction
from modern_llm.reporting.comparison.compare import Comparison, counted, progress
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import shown


def notices(compared: Comparison) -> list[str]:
    """What must be known before the numbers are read."""
    return [
        *compared.remarks,
        *_states(compared),
        *_codes(compared),
        *_measures(compared),
        *_repeats(compared),
        *_damages(compared),
    ]


def _states(compared: Comparison) -> list[str]:
    """Failed, unfinished and continued runs; many of a kind in one line."""
    failures: dict[str, list[str]] = {}
    pruned: list[str] = []
    others: dict[str, dict[str, str]] = {}  # kind of state -> label -> what else is known
    for i, run in enumerate(compared.runs):
        label = compared.labels[i]
        if run.status == "failed":
            failures.setdefault(run.why, []).append(label)
        elif run.status == "pruned":
            pruned.append(label)
        elif run.status in ("running", "interrupted"):
            ago = f", wrote {_duration(time.time() - run.last_written)} ago" if run.last_written else ""
            others.setdefault(run.status, {})[label] = progress(run) + ago
        elif _went_on(run):
            known = f"step {shown(run.metrics['steps'])} of {shown(run.last_step)}"
            others.setdefault("with final metrics older than the curve", {})[label] = known
    found = [
        f"{_told(compared.kind, names)} failed: {why[:240]}{'…' if len(why) > 240 else ''}"
        for why, names in failures.items()
    ]
    if pruned:
        found.append(f"{counted(len(pruned), compared.kind)} pruned, without final metrics: {_listed(pruned, 8)}")
    for state, runs in others.items():
        names = [f"{label} ({known})" for label, known in runs.items()]
        found.append(f"{counted(len(names), compared.kind)} {state}: {_listed(names, 3)}")
    return found


def _told(kind: str, names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{counted(len(names), kind)} ({_listed(names, 3)})"


def _codes(compared: Comparison) -> list[str]:
    versions: dict[str, int] = {}
    found, changed = [], []
    for i, run in enumerate(compared.runs):
        own = dict.fromkeys(str(s.get("code") or "unknown") for s in run.sittings)
        for version in own:
            versions[version] = versions.get(version, 0) + 1
        if len(own) > 1:
            changed.append(f"{compared.labels[i]} ({', then '.join(own)})")
    if len(versions) > 1:
        told = ", ".join(f"{version} ({counted(n, compared.kind)})" for version, n in _first(versions, 6))
        found.append(f"{len(versions)} versions of the code: {told}. Differences may come from the code")
    if changed:
        found.append(f"continued with another version of the code: {_listed(changed, 3)}")
    if dirty := sum(n for version, n in versions.items() if version.endswith("-dirty")):
        found.append(f"{counted(dirty, compared.kind)} had uncommitted changes: what exactly ran is not known")
    return found


def _measures(compared: Comparison) -> list[str]:
    several: dict[int, list[str]] = {}
    for metric in compared.metrics:
        if direction(metric) and (number := compared.yardsticks(metric)) > 1:
            several.setdefault(number, []).append(metric)
    return [
        f"{_listed(names, 5)}: measured on {number} different data sets, or with different tokenizers; the best is "
        "marked for each by itself"
        for number, names in several.items()
    ]


def _repeats(compared: Comparison) -> list[str]:
    finished = sum(1 for group in compared.groups for i in group.members if i in compared.finished)
    used = sum(len(group.counted) for group in compared.groups)
    if finished == used:
        return []
    left = counted(finished - used, compared.kind)
    return [f"{left} with the configuration and seed of another: only the newest counts in means over seeds"]


def _damages(compared: Comparison) -> list[str]:
    damaged: dict[str, list[str]] = {}
    for label, run in zip(compared.labels, compared.runs, strict=True):
        for note in run.notes:
            damaged.setdefault(note, []).append(label)
    return [f"{_told(compared.kind, names)}: {note}" for note, names in damaged.items()]


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _went_on(run: RunRecord) -> bool:
    steps, last = run.metrics.get("steps"), run.last_step
    return steps is not None and last is not None and last > steps


def _first(values: dict[str, int], most: int) -> list[tuple[str, int]]:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    left = ordered[most:]
    return ordered[:most] + ([(f"{len(left)} more", sum(n for _, n in left))] if left else [])


def _duration(seconds: float) -> str:
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return counted(int(seconds // size), name)
    return counted(max(0, int(seconds)), "second")

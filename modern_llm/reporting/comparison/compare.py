"""Many runs beside each other: what differs, what came out, what is noise; as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modern_llm.evaluation.metrics.registry import direction, per_token
from modern_llm.reporting.comparison.differences import ABSENT, Differences, differences, setting_text
from modern_llm.reporting.comparison.intervals import Mean
from modern_llm.reporting.metric_names import headline, is_bound
from modern_llm.reporting.pages.run import environment
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import shown

# Settings that say where a run is kept, how it is watched and what it shows, not what it measures.
_BYSTANDERS = ("name", "paths", "logger", "task.samples", "tags", "vars")
# What a run is, before anything else.
_FIRST = ("task", "task.data")
_SETTINGS_AT_FIRST = 8


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        members: places of the runs.
        counted: of these, the finished ones, the newest one of each seed.
        settings: what distinguishes the group from the others: key -> text.
    """

    members: list[int]
    counted: list[int]
    settings: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Runs compared.

    Args:
        runs: at least one.
        labels: what each is called.
        kind: what one is: `run`, or `job` in a sweep.
        choices: for a sweep, the overrides that vary: key -> value for each run; None: the configurations are compared.
        remarks: what is to be said besides.
    """

    runs: Sequence[RunRecord]
    labels: Sequence[str]
    kind: str = "run"
    choices: Sequence[dict[str, str]] | None = None
    remarks: Sequence[str] = ()

    @cached_property
    def configuration(self) -> Differences:
        """Differences of the configurations, among the runs that have one."""
        return differences({i: run.settings for i, run in enumerate(self.runs) if run.settings})

    @cached_property
    def environment(self) -> Differences:
        """Differences of where, with what and on which data the runs ran."""
        return differences({i: environment(run) for i, run in enumerate(self.runs) if run.sittings or run.result})

    @cached_property
    def settings(self) -> dict[str, dict[int, str]]:
        """What differs: key -> run's place -> text. Those that were typed come first, bystanders last."""
        if self.choices is not None:
            keys = dict.fromkeys(key for choice in self.choices for key in choice)
            return {k: {i: c[k] for i, c in enumerate(self.choices) if k in c} for k in keys}
        typed, varying = self._typed, self.configuration.varying

        def rank(key: str) -> int:
            if _is_bystander(key):
                return 3
            if key in _FIRST:
                return 0
            return 1 if any(_inside(key, t) or _inside(t, key) for t in typed) else 2

        return {
            key: {i: setting_text(value) for i, value in varying[key].items() if value is not ABSENT}
            for key in sorted(varying, key=rank)
        }

    @cached_property
    def _typed(self) -> set[str]:
        """Keys of all overrides."""
        return {o.lstrip("+~").split("=", 1)[0].replace("/", ".") for run in self.runs for o in run.overrides}

    @cached_property
    def main_settings(self) -> list[str]:
        """The differing settings that are shown at first: tags; of the others not the bystanders, and none that
        changes together with one before it unless it was typed, as the many that a choice of a task brings along."""
        if self.choices is not None:
            return list(self.settings)
        kept, patterns = [], set()
        for key, values in self.settings.items():
            order = {value: place for place, value in enumerate(dict.fromkeys(values.values()))}
            pattern = tuple(order.get(values[i]) if i in values else None for i in range(len(self.runs)))
            # The choice of a whole group, as task=wikitext2, types none of its settings by itself.
            by_itself = any(_inside(key, t) for t in self._typed if "." in t or t == key)
            if key == "tags" or (not _is_bystander(key) and (by_itself or pattern not in patterns)):
                kept.append(key)
            patterns.add(pattern)
        return kept[:_SETTINGS_AT_FIRST]

    @cached_property
    def metrics(self) -> list[str]:
        """Final metrics of finished runs, the headline first; bounds stand with what they bound."""
        found = dict.fromkeys(self.headline)
        for run in self.finished.values():
            found |= dict.fromkeys(name for name in run.metrics if not is_bound(name, run.metrics))
        return list(found)

    @cached_property
    def headline(self) -> list[str]:
        """The metrics that are shown at first."""
        return list(dict.fromkeys(n for run in self.finished.values() for n in headline(run.result, run.metrics)))

    @cached_property
    def finished(self) -> dict[int, RunRecord]:
        """The runs that have final metrics and did not fail afterwards."""
        return {i: run for i, run in enumerate(self.runs) if run.result and run.status == "finished"}

    @cached_property
    def groups(self) -> list[Group]:
        """Runs by everything but their seed, in the order of their first runs; a run without configuration is in
        none."""
        keys = [k for k in self.settings if k != "seed" and not _is_bystander(k)]
        members: dict[tuple[str | None, ...], list[int]] = {}
        for i, run in enumerate(self.runs):
            if run.settings or self.choices is not None:
                members.setdefault(tuple(self.settings[k].get(i) for k in keys), []).append(i)
        groups = []
        for choice, places in members.items():
            newest: dict[str, int] = {}
            for i in sorted((i for i in places if i in self.finished), key=lambda i: self.runs[i].last_written or 0.0):
                newest[self.seed(i)] = i
            groups.append(Group(places, sorted(newest.values()), dict(zip(keys, map(_or_empty, choice), strict=True))))
        return groups

    def status(self, place: int) -> str:
        """A run's status in one word."""
        return self.runs[place].status

    def seed(self, place: int) -> str:
        """A run's seed; its own place where none is known, so that it counts as one of its own."""
        if self.choices is not None and "seed" in self.choices[place]:
            return self.choices[place]["seed"]
        return str(self.runs[place].settings.get("seed", f"run {place}"))

    @property
    def seeds_vary(self) -> bool:
        """Whether any group has more than one seed."""
        return any(len({self.seed(i) for i in group.members}) > 1 for group in self.groups)

    def yardstick(self, place: int, metric: str) -> str:
        """What a run's value of a metric was measured on: only values with the same yardstick may be set against each
        other. The data as they were scored, by their fingerprint; the tokenizer, too, for averages over tokens."""
        run = self.runs[place]
        on = run.result.get("evaluated_on")
        if not isinstance(on, dict):
            return self._yardstick_of_before(run, metric)
        facts: dict[str, Any] = next(
            (on[k] for k in (metric, metric.split("_")[0], "") if isinstance(on.get(k), dict)), {}
        )
        parts = [facts.get("data"), facts.get("examples")]
        if per_token(metric):
            parts.append(facts.get("tokenizer"))
        return json.dumps(parts, sort_keys=True, default=str)

    def _yardstick_of_before(self, run: RunRecord, metric: str) -> str:
        """The same for a record that does not say on what it was measured: everything that may have decided it."""
        task = run.settings.get("task")
        task = task if isinstance(task, dict) else {}
        parts = [task.get(key) for key in ("_target_", "data")]
        protocol, perplexity = (run.result.get(key) for key in ("protocol", "perplexity_protocol"))
        if isinstance(protocol, dict):
            parts += [protocol.get("data_fingerprint"), protocol.get("evaluation_examples")]
        split = metric.split("_")[0]
        measured = perplexity.get(split) if isinstance(perplexity, dict) else None
        counts = measured.get("counts") if isinstance(measured, dict) else None
        parts.append(counts.get("bytes") if isinstance(counts, dict) else None)  # the same files may hold another text
        if per_token(metric):
            fingerprints = run.result.get("data_fingerprints")
            parts += [task.get("tokenizer"), fingerprints.get(split) if isinstance(fingerprints, dict) else None]
        return json.dumps(parts, sort_keys=True, default=str)

    def leaders(self, values: dict[int, float], metric: str) -> dict[int, int]:
        """The best values of a metric.

        Args:
            values: run's place -> value.

        Returns:
            Run's place -> place of the best run with the same yardstick, where there is something to choose.
        """
        way = direction(metric)
        classes: dict[str, list[int]] = {}
        for place in values if way else ():
            classes.setdefault(self.yardstick(place, metric), []).append(place)
        found: dict[int, int] = {}
        for members in classes.values():
            if len({values[i] for i in members}) > 1:
                best = (min if way == "lower" else max)(members, key=values.__getitem__)
                found |= dict.fromkeys(members, best)
        return found

    def best_runs(self, metric: str) -> set[int]:
        """Places of the finished runs whose value of a metric is the best by its yardstick."""
        values = {i: run.metrics[metric] for i, run in self.finished.items() if metric in run.metrics}
        return {i for i, leader in self.leaders(values, metric).items() if values[i] == values[leader]}

    def yardsticks(self, metric: str) -> int:
        """By how many yardsticks the finished runs' values of a metric were measured."""
        return len({self.yardstick(i, metric) for i, run in self.finished.items() if metric in run.metrics})

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row a run with plain values: label, settings, status, metrics of a finished run."""
        rows = []
        for i, run in enumerate(self.runs):
            row: dict[str, Any] = {self.kind: self.labels[i]}
            row |= {key: values[i] for key, values in self.settings.items() if i in values}
            row["status"] = f"{run.status}: {run.why}" if run.status in ("failed", "pruned") else self.status(i)
            rows.append(row | (run.metrics if i in self.finished else {}))
        return rows

    def means(self) -> list[tuple[Group, dict[str, Mean]]]:
        """Groups with finished runs, and the mean of every metric over their seeds."""
        found = []
        for group in self.groups:
            own = {
                m: [self.runs[i].metrics[m] for i in group.counted if m in self.runs[i].metrics] for m in self.metrics
            }
            if group.counted:
                found.append((group, {m: Mean.of(values) for m, values in own.items() if values}))
        return found


def _is_bystander(key: str) -> bool:
    return any(_inside(key, name) for name in _BYSTANDERS)


def _inside(key: str, part: str) -> bool:
    """Whether a key is, or is part of, what another key names."""
    return f"{key}.".startswith(f"{part}.")


def progress(run: RunRecord) -> str:
    """How far a run is, in words."""
    trainer = run.settings.get("trainer")
    length = trainer.get("max_steps") if isinstance(trainer, dict) else None
    if run.last_step is None:
        return "no metrics yet"
    return f"step {shown(run.last_step)}" + (f" of {shown(length)}" if length is not None else "")


def _or_empty(text: str | None) -> str:
    return text or ""


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"

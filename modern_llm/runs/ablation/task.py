"""The fair ablation: does a part help, by how much, and could it have been seen?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.config.instantiate import ConfigError
from modern_llm.config.overrides import override
from modern_llm.defaults import ROOT, Defaults
from modern_llm.evaluation.metrics.registry import direction
from modern_llm.experiment.contract import Paths, RunFolder, say, tell_paths
from modern_llm.reporting.comparison.paired import seeds_needed, smallest_effect
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import shown
from modern_llm.runs.ablation.arms import A_A, BASELINE, Arms, Cell
from modern_llm.runs.ablation.settings import RunBudget, Tuning
from modern_llm.runs.ablation.tuning import Factors, tune
from modern_llm.runs.job_folder import Clock, JobFolder, in_minutes, noted
from modern_llm.runs.launching import launch_of_this_command
from modern_llm.runs.rates import FIRST_STEPS, Rates, of_length, rates_of, short_run
from modern_llm.training.logs.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from modern_llm.reporting.comparison.ablation import Outcome, Run

_DEFAULTS = Defaults("task/ablation")
_STATE = "ablation.json"
# Seeds of each use, added to the command's: more seeds of arms leave the others as they are.
_OF_A_A, _OF_TUNING, _OF_PROBES = 1000, 2000, 3000
_ROUNDS = 3  # of probes, all arms in turn, where seconds become steps


@dataclass(frozen=True)
class Ablation:
    """Train a baseline and arms with the same budget over paired seeds, each with a rate that was tuned alike, and say
    what differs beyond noise.

    Args:
        hardware, logger, paths, seed: of the same names in the configuration; handed to every run.
        baseline: overrides of every run.
        arms: name -> overrides laid over the baseline's.
        sizes: name -> overrides of a size at which all is done, smallest first; none: the baseline's own.
        seeds: of every arm.
        budget: of every run.
        tuning: of every arm, at the first size; its factors hold at the others.
        metric: final metric that is compared; None: what the runs' task is optimised by. Perplexities are compared as
            their logarithms, nats per token.
        effect: size of a difference that matters; None: what a twentieth of the steps is worth.
        noise: standard deviation of a paired difference, as an earlier ablation showed it: what can be seen is then
            told in the metric's unit before the first run, and how many seeds `effect` takes.
        a_a: whether the baseline is run once more under other seeds.
        curve: lengths of further runs of the baseline, as shares of the budget.
        curve_seeds: of each.
        probe_steps: of the short runs by which rates are measured.
        allow: keys in which arms may differ although they belong to what must be equal.

    Raises:
        ValueError: an impossible value.
        ConfigError: an override that no run may be given.
    """

    hardware: Hardware
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    baseline: list[str] = _DEFAULTS("baseline")
    arms: Any = _DEFAULTS("arms")
    sizes: Any = _DEFAULTS("sizes")
    seeds: int = _DEFAULTS("seeds")
    budget: RunBudget = field(default_factory=RunBudget)
    tuning: Tuning = field(default_factory=Tuning)
    metric: str | None = _DEFAULTS("metric")
    effect: float | None = _DEFAULTS("effect")
    noise: float | None = _DEFAULTS("noise")
    a_a: bool = _DEFAULTS("a_a")
    curve: list[float] = _DEFAULTS("curve")
    curve_seeds: int = _DEFAULTS("curve_seeds")
    probe_steps: int = _DEFAULTS("probe_steps")
    allow: list[str] = _DEFAULTS("allow")
    objective_metric: ClassVar[str] = "arms_better"
    more: ClassVar[str] = "more seeds: task.seeds=…"

    def __post_init__(self) -> None:
        require(2 <= self.seeds <= _OF_A_A, "task.seeds", self.seeds,
                f"must lie between 2 and {_OF_A_A}: an interval takes two, a verdict five", "Use 5")  # fmt: skip
        require(self.effect is None or self.effect > 0, "task.effect", self.effect, "must be above 0",
                "Use null for what a twentieth of the steps is worth")  # fmt: skip
        require(all(share > 0 and share != 1 for share in self.curve), "task.curve", self.curve,
                "must be shares of the budget, above 0 and other than 1", "Use [0.7, 1.4], or [] for none")  # fmt: skip
        require(self.noise is None or self.noise > 0, "task.noise", self.noise, "must be above 0",
                "Use null where it is not known")  # fmt: skip
        require(self.curve_seeds >= 1, "task.curve_seeds", self.curve_seeds, "must be at least 1", "Raise it")
        require(self.probe_steps > FIRST_STEPS + 1, "task.probe_steps", self.probe_steps,
                f"must be above {FIRST_STEPS + 1}, because the first steps are slower", "Use 8")  # fmt: skip
        object.__setattr__(self, "_arms", Arms(self.baseline, self.arms, self.sizes, self.allow))

    @property
    def planned(self) -> Arms:
        """The arms."""
        return self._arms  # type: ignore[attr-defined]

    def further_work(self, folder: Path) -> bool:
        """Whether a finished ablation has runs to do that it has not done: more seeds were asked for."""
        return bool(noted(folder / _STATE).get("seeds", 0) < self.seeds)

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Measure rates, tune, run, and report, from where the folder stands. Returns the final metrics.

        Raises:
            ConfigError: an arm that cannot run or be compared, told before the first run; a baseline that fails.
            SweepInterrupted: a signal came; the same command with resume=auto goes on.
        """
        self.planned.check(folder.record)
        metric = self.metric or self.planned.objective
        way = direction(metric)
        if way is None:
            raise ConfigError(f"task.metric={metric}: which way it is better is not known. Choose another one.")
        for cell in self.planned.cells:
            self.planned.scaled(cell, dict.fromkeys(self.tuning.keys, 1.0))
        state = noted(folder.path / _STATE)
        rates = self._rates(folder, state, metric)
        steps = {cell: self._steps(cell, rates) for cell in rates}
        self._tell_plan(rates, steps)
        factors, trials = self._tuned(folder, rates, steps, metric, way == "lower")
        runs = self._runs(folder, rates, steps, factors, metric)
        return self._report(folder, metric, way == "lower", rates, factors, trials, runs)

    # -- before the first run ---------------------------------------------------------------------------------------

    def _launched(self, folder: Path) -> JobFolder:
        return JobFolder(folder, lambda place: launch_of_this_command(place, self.hardware.device))

    def _rates(self, folder: RunFolder, state: dict[str, Any], metric: str) -> dict[Cell, Rates]:
        """What a step of each cell takes, from short runs, all arms in turn. What was measured once stays."""
        cells = self.planned.cells
        known = {key: Rates(**rates) for key, rates in state.get("rates", {}).items()}
        if {*map(str, cells)} <= {*known}:
            return {cell: known[str(cell)] for cell in cells}
        rounds = _ROUNDS if self.budget.name == "seconds" else 1
        say(f"measuring what a step takes: {len(cells)} short runs" + (f", {rounds} times" if rounds > 1 else ""))
        n = self.probe_steps
        jobs = [
            self.planned.overrides(cell, *short_run(n), override("seed", self.seed + _OF_PROBES + place))
            for place in range(rounds)
            for cell in cells
        ]
        probes = self._launched(folder.path / "rates").run(jobs)
        rates: dict[Cell, Rates] = {}
        for place, cell in enumerate(cells):
            own = probes[place :: len(cells)]
            if cell.arm != BASELINE and any(run.diverged for run in own):
                say(f"  {cell} diverges in its first {n} steps; its cost is taken to be the baseline's")
                rates[cell] = rates[Cell(cell.size, BASELINE)]
                continue
            failed = next((run for run in own if run.status != "finished"), None)
            if failed is not None:
                raise ConfigError(
                    f"{cell}: its first {n} steps failed: {failed.why}. Its record is in {failed.folder}."
                )
            if metric not in own[0].metrics:
                scored = [name for name in own[0].metrics if direction(name) is not None]
                raise ConfigError(f"task.metric={metric}: is not measured by {cell}. Choose among {', '.join(scored)}.")
            rates[cell] = rates_of(own)
        folder.write_json(_STATE, state | {"rates": {str(cell): asdict(found) for cell, found in rates.items()}})
        return rates

    def _steps(self, cell: Cell, rates: Mapping[Cell, Rates]) -> int:
        """Optimiser steps of a run of a cell."""
        own = rates[cell]
        configured = self.planned.steps[cell.size]
        if self.budget.name == "steps" and configured is None:
            raise ConfigError("task.budget: the baseline has no trainer.max_steps. Give task.budget.tokens.")
        require(self.budget.flops is None or own.flops > 0, "task.budget.flops", self.budget.flops,
                f"cannot be counted for {cell}", "Use tokens or seconds")  # fmt: skip
        steps = self.budget.steps(own.tokens, own.flops, own.seconds, configured or 0)
        least = 10 * self.probe_steps // 8
        given = steps if self.budget.name == "steps" else getattr(self.budget, self.budget.name)
        require(steps >= least, f"task.budget.{self.budget.name}", given,
                f"is enough for {steps} steps of {cell}, and a schedule takes {least}",
                f"Give at least {least * getattr(own, self.budget.name, 1):.3g}")  # fmt: skip
        return steps

    def _tell_plan(self, rates: Mapping[Cell, Rates], steps: Mapping[Cell, int]) -> None:
        """Say what is going to be run, what it costs, and what it can show."""
        cells, arms = list(rates), len(self.planned.arms)
        extra = {
            cell: self.seeds * self.a_a + sum(self.curve) * self._on_curve for cell in cells if cell.arm == BASELINE
        }
        tuned = {cell: self.tuning.runs_per_arm * self.tuning.share for cell in cells if cell.size == cells[0].size}
        lengths = {cell: self.seeds + extra.get(cell, 0) + tuned.get(cell, 0) for cell in cells}
        count = sum(self.seeds + (self.seeds * self.a_a + len(self.curve) * self._on_curve) * (cell in extra)
                    + self.tuning.runs_per_arm * (cell in tuned) for cell in cells)  # fmt: skip
        totals = {
            "tokens": sum(lengths[cell] * steps[cell] * rates[cell].tokens for cell in cells),
            "FLOPs": sum(lengths[cell] * steps[cell] * rates[cell].flops for cell in cells),
        }
        seconds = sum(lengths[c] * steps[c] * rates[c].seconds for c in cells) + count * statistics.fmean(
            rates[c].around for c in cells)  # fmt: skip
        say(f"ablation: {arms} {'arm' if arms == 1 else 'arms'} and the baseline"
            + (f" at {len(self.planned.sizes)} sizes" if len(self.planned.sizes) > 1 else "")
            + f", {self.seeds} seeds; in all {count} runs, {totals['tokens']:.3g} tokens, {totals['FLOPs']:.3g} FLOPs, "
            f"about {in_minutes(seconds)} one after the other")  # fmt: skip
        for cell in cells:
            one, each = rates[cell], steps[cell]
            say(f"  {cell}: {each} steps, {each * one.tokens:,.0f} tokens, {each * one.flops:.3g} FLOPs, "
                f"{each * one.seconds:.0f} s of training; {shown(int(one.parameters))} parameters")  # fmt: skip
        visible = smallest_effect(self.seeds, arms)
        say(f"  an effect of {visible:.2g} times the noise (the standard deviation of a paired difference) is found "
            "with a chance of 80 %" + (f": {visible * self.noise:.3g}" if self.noise is not None else ""))  # fmt: skip
        if self.noise is not None and self.effect is not None:
            enough = seeds_needed(self.effect / self.noise, arms)
            say(f"  an effect of {self.effect:.3g} takes {'more than 10,000' if enough is None else enough} seeds")

    @property
    def _on_curve(self) -> int:
        return min(self.curve_seeds, self.seeds)

    # -- the runs ---------------------------------------------------------------------------------------------------

    def _tuned(
        self,
        folder: RunFolder,
        rates: Mapping[Cell, Rates],
        steps: Mapping[Cell, int],
        metric: str,
        lower: bool,
    ) -> tuple[dict[str, Factors], list[dict[str, Any]]]:
        """Factors of every arm, and the trials that found them."""
        arms = [BASELINE, *self.planned.arms]
        if not self.tuning.keys:
            return {arm: {} for arm in arms}, []
        size = next(iter(self.planned.sizes))
        jobs = self._launched(folder.path / "tuning")
        say(f"tuning {', '.join(self.tuning.keys)}: {self.tuning.trials_per_arm} trials of each arm")

        def run(asked: Sequence[tuple[str, Factors]]) -> list[float | None]:
            overrides, expected = [], []
            for arm, factors in asked:
                cell = Cell(size, arm)
                for seed in range(self.tuning.seeds):
                    scaled, length = self.planned.scaled(cell, factors), _share_of(steps[cell], self.tuning.share)
                    own = override("seed", self.seed + _OF_TUNING + seed)
                    overrides.append(self.planned.overrides(cell, *scaled, *length, own))
                    expected.append(rates[cell].run_seconds(self.tuning.share * steps[cell]))
            records = jobs.run(overrides, Clock("tuning", expected))
            values = [_value(record, metric) for record in records]
            trials = [values[n : n + self.tuning.seeds] for n in range(0, len(values), self.tuning.seeds)]
            whole = [[value for value in trial if value is not None] for trial in trials]
            return [statistics.fmean(trial) if len(trial) == self.tuning.seeds else None for trial in whole]

        found, trials = tune(self.tuning, arms, lower, self.seed, folder.path / "tuning" / "studies", run)
        for arm, best in found.items():
            told = ", ".join(f"{key} x {factor:.3g}" for key, factor in best.factors.items())
            edge = "; at the edge of what was tried: widen task.tuning.factors" if best.at_edge else ""
            say(f"  {arm}: {told}{edge}")
        return {arm: best.factors for arm, best in found.items()}, [
            {"arm": t.arm, **t.factors, metric: t.value, "at_edge": bool(found[t.arm].at_edge)} for t in trials
        ]

    def _runs(
        self,
        folder: RunFolder,
        rates: Mapping[Cell, Rates],
        steps: Mapping[Cell, int],
        factors: Mapping[str, Factors],
        metric: str,
    ) -> list[Run]:
        """All runs that are compared, seed by seed, so that what there is of them is paired at any time."""
        from modern_llm.reporting.comparison.ablation import Run

        asked: list[tuple[Cell, int, int, float]] = []  # cell, number of the seed, seed, length
        for place in range(self.seeds):
            for cell in rates:
                asked.append((cell, place, self.seed + place, 1.0))
                if cell.arm == BASELINE:
                    again = Cell(cell.size, A_A)
                    asked += [(again, place, self.seed + _OF_A_A + place, 1.0)] * self.a_a
                    shares = self.curve if place < self._on_curve else []
                    asked += [(cell, place, self.seed + place, share) for share in shares]
        jobs, expected = [], []
        for cell, _, seed, share in asked:
            real = Cell(cell.size, BASELINE) if cell.arm == A_A else cell
            scaled = self.planned.scaled(real, factors[real.arm])
            own = self.planned.overrides(real, *scaled, *_share_of(steps[real], share), override("seed", seed))
            jobs.append(own)
            expected.append(rates[real].run_seconds(share * steps[real]))
        records = self._launched(folder.path / "runs").run(jobs, Clock("runs", expected))
        folder.write_json(_STATE, noted(folder.path / _STATE) | {"seeds": self.seeds})
        return [
            Run(cell.size, cell.arm, place, share, record, _value(record, metric))
            for (cell, place, _, share), record in zip(asked, records, strict=True)
        ]

    # -- what came of it --------------------------------------------------------------------------------------------

    def _report(
        self,
        folder: RunFolder,
        metric: str,
        lower: bool,
        rates: Mapping[Cell, Rates],
        factors: Mapping[str, Factors],
        trials: list[dict[str, Any]],
        runs: list[Run],
    ) -> dict[str, float]:
        from modern_llm.reporting.comparison.ablation import outcomes
        from modern_llm.reporting.pages.ablation import Told, write_ablation_report

        parameters = {cell.size: own.parameters for cell, own in rates.items() if cell.arm == BASELINE}
        found = outcomes(runs, parameters, lower, self.effect)
        name = f"log {metric}" if "perplexity" in metric else metric
        own = {arm: self.planned.own(Cell(next(iter(self.planned.sizes)), arm)) for arm in factors}
        told = Told(name, self.budget.name, lower, factors, trials, own, self.tuning.keys)
        metrics = _metrics(found)
        folder.write_result(self.objective_metric, metrics, [n for n in metrics if n.startswith("difference_")])
        written = write_ablation_report(folder.path, found, runs, told)
        print(written["table"].read_text(encoding="utf-8"))
        tell_paths({"result": folder.path / "result.json", **written})
        return metrics


def _share_of(steps: int, share: float) -> list[str]:
    """Overrides of a run that has a share of the steps."""
    return of_length(max(round(share * steps), 1))


def _metrics(found: Sequence[Outcome]) -> dict[str, float]:
    """Figures of an ablation by name."""
    metrics: dict[str, float] = {"arms_better": sum(o.words.word == "better" for o in found if o.words is not None)}
    for outcome in found:
        if outcome.differences is None:
            continue
        name = f"difference_{outcome.arm}" + (f"_{outcome.size}" if outcome.size else "")
        metrics[name] = outcome.differences.mean
        if outcome.differences.interval is not None:
            metrics[f"{name}_low"], metrics[f"{name}_high"] = outcome.differences.interval
    return metrics


def _value(record: RunRecord, metric: str) -> float | None:
    """What is compared of a run; None where it has none."""
    from math import log

    value = record.metrics.get(metric) if record.status == "finished" else None
    return log(value) if value is not None and "perplexity" in metric else value

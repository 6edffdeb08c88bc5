"""A ladder of sizes and lengths under one recipe: the scaling law through it, held against its largest rung."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig

from modern_llm.checks import require
from modern_llm.config.instantiate import ConfigError
from modern_llm.config.overrides import laid_over, override, require_own
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, say, tell_paths
from modern_llm.reporting.comparison.scaling_law import LEAST_POINTS, Rung, ScalingLaw, between, fit, resampled
from modern_llm.reporting.record import RunRecord
from modern_llm.runs.job_folder import Clock, JobFolder, in_minutes, noted
from modern_llm.runs.launching import launch_of_this_command
from modern_llm.runs.own_jobs import OwnJobs, named_overrides
from modern_llm.runs.rates import FIRST_STEPS, Rates, of_length, rates_of, short_run
from modern_llm.training.logs.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware

_DEFAULTS = Defaults("task/ladder")
_STATE = "ladder.json"
_OF_PROBES = 3000


@dataclass(frozen=True)
class _Size:
    """One size: its whole overrides, and the share of a run's steps at the end in which the rate falls."""

    overrides: list[str]
    falling: float

    def falls_at(self, steps: int) -> int:
        """The step at which the rate begins to fall in a run of so many."""
        return round((1 - self.falling) * steps)


@dataclass(frozen=True)
class Ladder:
    """Train every size once to the longest length at a constant rate, let the rate fall from the checkpoints on the way
    for the shorter ones (Hu et al. 2024, arXiv 2404.06395, section 4.4), and fit L(N, D).

    Args:
        hardware, logger, paths, seed: of the same names in the configuration; handed to every run.
        baseline: overrides of every run.
        branching: overrides without which a run's beginning would depend on its length.
        sizes: name -> overrides, smallest first, at least three.
        horizons: tokens of each length, multiples of the first.
        seeds: of every size.
        predict: whether the largest size is predicted from the others before it is trained.
        metric: final metric in nats per token.
        resamples: laws that are fitted for the intervals.
        probe_steps: of the short runs by which rates are measured.

    Raises:
        ValueError: an impossible value.
        ConfigError: an override that no run may be given.
    """

    hardware: Hardware
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    baseline: list[str] = _DEFAULTS("baseline")
    branching: list[str] = _DEFAULTS("branching")
    sizes: Any = _DEFAULTS("sizes")
    horizons: list[float] = _DEFAULTS("horizons")
    seeds: int = _DEFAULTS("seeds")
    predict: bool = _DEFAULTS("predict")
    metric: str = _DEFAULTS("metric")
    resamples: int = _DEFAULTS("resamples")
    probe_steps: int = _DEFAULTS("probe_steps")
    objective_metric: ClassVar[str] = "prediction_error"
    more: ClassVar[str] = "more seeds: task.seeds=…"

    def __post_init__(self) -> None:
        sizes = named_overrides("task.sizes", self.sizes)
        require(len(sizes) >= 3, "task.sizes", list(sizes), "are fewer than three: a law takes three",
                "Name more of them")  # fmt: skip
        for key in ("baseline", "branching"):
            require_own(f"task.{key}", getattr(self, key))
        ordered = sorted({*self.horizons})
        require(len(ordered) >= 2 and ordered == self.horizons and ordered[0] > 0, "task.horizons", self.horizons,
                "must be two or more, ascending, above 0", "Use [150e3, 300e3, 600e3]")  # fmt: skip
        require(all(abs(h / ordered[0] - round(h / ordered[0])) < 1e-9 for h in ordered), "task.horizons",
                self.horizons, "must be multiples of the first: one run passes them all",
                "Use once, twice and four times as many")  # fmt: skip
        for key in ("seeds", "resamples"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1", "Raise it")
        points = (len(sizes) - self.predict) * len(ordered) * self.seeds
        require(points >= LEAST_POINTS, "task.sizes", list(sizes), f"and task.horizons give {points} runs, and a law "
                f"takes {LEAST_POINTS}", "Add sizes, lengths or seeds")  # fmt: skip
        require(self.probe_steps > FIRST_STEPS + 1, "task.probe_steps", self.probe_steps,
                f"must be above {FIRST_STEPS + 1}, because the first steps are slower", "Use 8")  # fmt: skip
        object.__setattr__(self, "_named", sizes)

    @property
    def named(self) -> dict[str, list[str]]:
        """The sizes."""
        return self._named  # type: ignore[attr-defined]

    def further_work(self, folder: Path) -> bool:
        """Whether more seeds were asked for than a finished ladder has."""
        return bool(noted(folder / _STATE).get("seeds", 0) < self.seeds)

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Measure rates, train, predict, train the largest size, fit and report. Returns the final metrics.

        Raises:
            ConfigError: a size that cannot run, or a recipe whose beginning depends on its end; before the first run.
            SweepInterrupted: a signal came; the same command with resume=auto goes on.
        """
        from modern_llm.reporting.pages.ladder import write_ladder_report

        jobs, sizes = OwnJobs(folder.record), {}
        for name, given in self.named.items():
            own = laid_over(self.baseline, self.branching, given)
            trainer = jobs.checked(f"task.sizes.{name}", own).trainer
            _require_no_foresight(name, trainer)
            sizes[name] = _Size(jobs.whole(own), float(trainer.schedule.decay_fraction))
        rates = self._rates(folder, sizes)
        steps = self._steps(rates)
        self._tell_plan(rates, steps, sizes)
        largest = max(rates, key=lambda size: rates[size].flops) if self.predict else None
        smaller = [size for size in sizes if size != largest]
        rungs = self._climbed(folder, {size: sizes[size] for size in smaller}, rates, steps)
        predicted: list[dict[str, Any]] = []
        if largest is not None:
            law, laws = self._law(rungs)
            for tokens in (n * rates[largest].tokens for n in steps[largest]):
                parameters = rates[largest].flops / rates[largest].tokens / 6
                low, high = between([other.loss(parameters, tokens) for other in laws])
                told = law.loss(parameters, tokens)
                predicted.append({"size": largest, "tokens": tokens, "predicted": told, "low": low, "high": high})
                say(f"predicted: {largest} after {tokens:,.0f} tokens {told:.4f} ({low:.4f} to {high:.4f})")
            folder.write_json(_STATE, noted(folder.path / _STATE) | {"predicted": predicted})
            rungs += self._climbed(folder, {largest: sizes[largest]}, rates, steps)
        folder.write_json(_STATE, noted(folder.path / _STATE) | {"seeds": self.seeds})
        law, laws = self._law(rungs)
        metrics = _metrics(law, laws, predicted, rungs)
        folder.write_result(self.objective_metric, metrics, list(metrics)[:6])
        written = write_ladder_report(folder.path, rungs, law, laws, predicted)
        print(written["table"].read_text(encoding="utf-8"))
        tell_paths({"result": folder.path / "result.json", **written})
        return metrics

    def _law(self, rungs: Sequence[Rung]) -> tuple[ScalingLaw, list[ScalingLaw]]:
        """Through rungs, and through redrawn ones."""
        points = ([r.parameters for r in rungs], [r.tokens for r in rungs], [r.loss for r in rungs])
        return fit(*points), resampled(*points, self.resamples, self.seed)

    # -- what runs --------------------------------------------------------------------------------------------------

    def _jobs(self, folder: Path) -> JobFolder:
        return JobFolder(folder, lambda place: launch_of_this_command(place, self.hardware.device))

    def _rates(self, folder: RunFolder, sizes: dict[str, _Size]) -> dict[str, Rates]:
        """What a step of each size takes. What was measured once stays."""
        known = {size: Rates(**rates) for size, rates in noted(folder.path / _STATE).get("rates", {}).items()}
        if {*sizes} <= {*known}:
            return {size: known[size] for size in sizes}
        say(f"measuring what a step takes: {len(sizes)} short runs")
        own = override("seed", self.seed + _OF_PROBES)
        probes = self._jobs(folder.path / "rates").run(
            [laid_over(size.overrides, short_run(self.probe_steps), [own]) for size in sizes.values()]
        )
        rates = {}
        for size, probe in zip(sizes, probes, strict=True):
            if probe.status != "finished":
                raise ConfigError(f"task.sizes.{size}: its first steps failed: {probe.why}. See {probe.folder}.")
            if self.metric not in probe.metrics:
                raise ConfigError(f"task.metric={self.metric}: is not measured. Use validation_loss.")
            if not probe.metrics.get("flops"):
                raise ConfigError(f"task.sizes.{size}: its operations cannot be counted, and a law is over them.")
            rates[size] = rates_of([probe])
        folder.write_json(
            _STATE, noted(folder.path / _STATE) | {"rates": {size: asdict(r) for size, r in rates.items()}}
        )
        return rates

    def _steps(self, rates: dict[str, Rates]) -> dict[str, list[int]]:
        """Steps of every length, for each size. The rate begins to fall at a whole step, which is a checkpoint."""
        found = {}
        for size, own in rates.items():
            first = int(self.horizons[0] / own.tokens)
            first -= first % 10  # shares of a schedule are tenths
            require(first >= 10, "task.horizons", self.horizons,
                    f"are too short: the first is {self.horizons[0] / own.tokens:.3g} steps of {size}",
                    f"Begin with {10 * own.tokens:.3g} tokens or more")  # fmt: skip
            found[size] = [first * round(horizon / self.horizons[0]) for horizon in self.horizons]
        return found

    def _tell_plan(self, rates: dict[str, Rates], steps: dict[str, list[int]], sizes: dict[str, _Size]) -> None:
        branches = self.seeds * len(rates) * (len(self.horizons) - 1)
        seconds = sum(
            self.seeds
            * (
                own.run_seconds(steps[size][-1])
                + sum(own.run_seconds(sizes[size].falling * n) for n in steps[size][:-1])
            )
            for size, own in rates.items()
        )
        say(f"ladder: {len(rates)} sizes, {len(self.horizons)} lengths, {self.seeds} seeds; "
            f"{self.seeds * len(rates)} runs and {branches} branches of them, about {in_minutes(seconds)} one after "
            "the other")  # fmt: skip
        for size, own in rates.items():
            say(f"  {size}: {own.flops / own.tokens / 6:,.0f} parameters that compute, {own.parameters:,.0f} in all; "
                f"{', '.join(map(str, steps[size]))} steps")  # fmt: skip

    def _climbed(
        self,
        folder: RunFolder,
        sizes: dict[str, _Size],
        rates: dict[str, Rates],
        steps: dict[str, list[int]],
    ) -> list[Rung]:
        """Rungs of these sizes: a run of the longest length for each, then a branch of it for every shorter one."""
        each = [(size, self.seed + seed) for size in sizes for seed in range(self.seeds)]

        def job(size: str, seed: int, length: int) -> list[str]:
            falls = sizes[size].falls_at(steps[size][0])
            kept = [f"trainer.save_every={falls}", f"trainer.eval_every={falls}",
                    f"trainer.keep_checkpoints={steps[size][-1] // falls + 1}"]  # fmt: skip
            return laid_over(sizes[size].overrides, of_length(length), kept, [override("seed", seed)])

        trunks = [job(size, seed, steps[size][-1]) for size, seed in each]
        expected = [rates[size].run_seconds(steps[size][-1]) for size, _ in each]
        whole = self._jobs(folder.path / "runs").run(trunks, Clock("runs", expected))
        branches, start, expected = [], dict[tuple[str, ...], tuple[Path, int]](), []
        for (size, seed), trunk in zip(each, whole, strict=True):
            if trunk.status != "finished":
                raise ConfigError(f"{size}, seed {seed}: {trunk.why or trunk.status}. Its record is in {trunk.folder}.")
            for n in steps[size][:-1]:
                branches.append(job(size, seed, n))
                start[tuple(branches[-1])] = trunk.folder, sizes[size].falls_at(n)
                expected.append(rates[size].run_seconds(n - sizes[size].falls_at(n)))

        def prepare(branch: list[str], place: Path) -> None:
            _branch(*start[tuple(branch)], place)

        ends = self._jobs(folder.path / "branches").run(branches, Clock("branches", expected), prepare)
        found = []
        own = iter(ends)
        for (size, seed), trunk in zip(each, whole, strict=True):
            for run in [*(next(own) for _ in steps[size][:-1]), trunk]:
                if run.status != "finished":
                    raise ConfigError(f"{size}, seed {seed}: {run.why or run.status}. Its record is in {run.folder}.")
                found.append(self._rung(size, seed, run))
        return found

    def _rung(self, size: str, seed: int, run: RunRecord) -> Rung:
        m = run.metrics
        per_token = m["flops"] / m["tokens"]
        return Rung(size, seed, per_token / 6, m["tokens"], m["flops"], m["seconds"], m[self.metric])


def _branch(trunk: Path, step: int, place: Path) -> None:
    """Lay a run's beginning up to a checkpoint into a folder, where it goes on as another run would have."""
    aside = place.with_name(f"{place.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    name = f"step_{step:08d}"
    shutil.copytree(trunk / "checkpoints" / name, aside / "checkpoints" / name)
    for file in ("config.yaml", "metrics.jsonl"):
        shutil.copy(trunk / file, aside / file)
    aside.rename(place)


def _require_no_foresight(size: str, trainer: DictConfig) -> None:
    """Refuse a recipe in which steps before the fall of the rate depend on how long the run will be."""
    schedule, optimizer = trainer.schedule, trainer.optimizer
    faults = {
        "trainer/schedule": not str(schedule._target_).endswith(".WSD"),
        "trainer.schedule.warmup_fraction": schedule.get("warmup_fraction", 0) != 0,
        "trainer.optimizer.momentum_start": optimizer.get("momentum_start") is not None,
        "trainer.optimizer.momentum_end": optimizer.get("momentum_end") is not None,
        "trainer.optimizer.weight_decay_schedule": optimizer.get("weight_decay_schedule", "constant") != "constant",
        "trainer/average": trainer.get("average") is not None,
    }
    for key, fault in faults.items():
        if fault:
            raise ConfigError(
                f"{key} of {size}: depends on how long a run is, so no run gives more than one length. "
                "Leave task.branching as it is, or set it there to what does not: see conf/task/ladder.yaml."
            )


def _metrics(
    law: ScalingLaw, laws: Sequence[ScalingLaw], predicted: Sequence[dict[str, Any]], rungs: Sequence[Rung]
) -> dict[str, float]:
    """Figures of a ladder by name."""
    metrics: dict[str, float] = {}
    errors = []
    for row in predicted:
        measured = [r.loss for r in rungs if r.size == row["size"] and abs(r.tokens / row["tokens"] - 1) < 0.01]
        row["measured"] = sum(measured) / len(measured)
        row["error"] = row["measured"] - row["predicted"]
        errors.append(abs(row["error"]))
    if errors:
        metrics["prediction_error"] = sum(errors) / len(errors)
    for name in ("floor", "size_exponent", "data_exponent", "size_share"):
        metrics[name] = getattr(law, name)
        metrics[f"{name}_low"], metrics[f"{name}_high"] = between([getattr(other, name) for other in laws])
    metrics |= {"size_factor": law.size_factor, "data_factor": law.data_factor}
    metrics["fit_error"] = sum(abs(law.loss(r.parameters, r.tokens) - r.loss) for r in rungs) / len(rungs)
    return metrics

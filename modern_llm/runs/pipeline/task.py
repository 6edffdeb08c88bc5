"""Base → SFT → reward model → DPO → RL → verifier → best of n with one command, each a run in a folder of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from modern_llm.checks import require
from modern_llm.config.composing import composed
from modern_llm.config.instantiate import ConfigError, build
from modern_llm.config.overrides import as_overrides, chosen, key_of, laid_over, override, require_own
from modern_llm.config.records import read_record
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, say, tell_paths
from modern_llm.experiment.judges import known_problems
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.reporting.record import RunRecord, job_status
from modern_llm.runs.checked import checked
from modern_llm.runs.commands import run_in_process
from modern_llm.runs.pipeline.controls import CONTROLS, ControlName, SameTime, require_rl
from modern_llm.runs.pipeline.measures import measure_policies
from modern_llm.runs.pipeline.plan import (
    DEALT,
    NEEDS,
    POLICIES,
    RUNS,
    SHARED,
    STAGES,
    StageName,
    essential,
    look_up,
    planned,
    policy_before,
    told_of,
    with_stand_ins,
)
from modern_llm.runs.pipeline.settings import Measures, Policy, StageSettings
from modern_llm.runs.pipeline.state import State
from modern_llm.runs.sweep import set_aside
from modern_llm.training.logs.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware

# What a sweep optimises when the pipeline ends with this stage.
_OBJECTIVES: dict[StageName, str] = {
    "base": "base_perplexity",
    "sft": "sft_conversation_loss",
    "reward_model": "reward_model_evaluation_preference_accuracy",
    "dpo": "dpo_reward_accuracy",
    "rl": "rl_evaluation_pass_at_1",
    "verifier": "verifier_roc_auc",
    "best_of_n": "best_of_n_verifier_em",
}


class StageFailedError(RuntimeError):
    """A stage ended without a result; the message says why and how to go on."""


_DEFAULTS = Defaults("task/pipeline")


@dataclass(frozen=True)
class Pipeline:
    """Run stages that are not done, each in a process and a folder of its own; then measure the policy after each stage
    on the same data, and write one table and one page.

    A stage is an ordinary run: `task=<its task>` with the model of the stage before it, the machine, logger, paths and
    seed of this command, and the overrides that are given for it here.

    Args:
        model: the base: a decoder to be trained from scratch, or a model that is trained already.
        hardware, logger, paths, seed: of the same names in the configuration; handed to every stage.
        stages: those to run; what they need must be among them, or have run in this folder.
        base: overrides of the pretraining of a decoder from scratch; `task=` in it also says on which text every
            policy's perplexity is measured.
        sft, reward_model, dpo, rl, verifier, best_of_n: overrides of these stages, such as [task/data=p3,
            trainer.max_steps=200].
        controls: of RL, which begin with the policy that it begins with, run behind it and are measured alike:
            `rejection` learns from the right ones among as many draws alone, `sft` goes on with the stage sft for as
            long as RL took.
        measures: what is measured of every policy at the end.
        objective_metric: final metric that a sweep optimises; empty: what the last stage is for.

    Raises:
        ValueError: stages in a wrong order, twice or none; controls without RL.
        ConfigError: an override that no stage may be given.
    """

    model: PretrainedModel | ModelFromRun | ModernLLMConfig
    hardware: Hardware
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    stages: list[StageName] = _DEFAULTS("stages")
    base: list[str] = _DEFAULTS("base")
    sft: list[str] = _DEFAULTS("sft")
    reward_model: list[str] = _DEFAULTS("reward_model")
    dpo: list[str] = _DEFAULTS("dpo")
    rl: list[str] = _DEFAULTS("rl")
    verifier: list[str] = _DEFAULTS("verifier")
    best_of_n: list[str] = _DEFAULTS("best_of_n")
    controls: list[ControlName] = _DEFAULTS("controls")
    measures: Measures = field(default_factory=Measures)
    objective_metric: str = _DEFAULTS("objective_metric")
    more: ClassVar[str] = "further stages (task.stages=[…]) or other measures (task.measures.…)"

    def __post_init__(self) -> None:
        require(bool(self.stages), "task.stages", self.stages, "names none", f"Choose among {', '.join(STAGES)}")
        ordered = [stage for stage in STAGES if stage in self.stages]
        require(self.stages == ordered, "task.stages", self.stages, "must be in their order, each once",
                f"Write task.stages=[{','.join(ordered)}]")  # fmt: skip
        require_rl(self.controls, self.stages)
        for stage, overrides in self.given.items():
            require_own(f"task.{stage}", overrides)
        if not self.objective_metric:
            object.__setattr__(self, "objective_metric", _OBJECTIVES[self.stages[-1]])

    @property
    def given(self) -> dict[StageName, list[str]]:
        """Overrides of each stage, as they were given."""
        return {
            "base": self.base,
            "sft": self.sft,
            "reward_model": self.reward_model,
            "dpo": self.dpo,
            "rl": self.rl,
            "verifier": self.verifier,
            "best_of_n": self.best_of_n,
        }

    @property
    def trains_base(self) -> bool:
        """Whether the base is trained here."""
        return isinstance(self.model, ModernLLMConfig)

    def further_work(self, folder: Path) -> bool:
        """Whether a finished pipeline has stages to run that it has not run, or has been measured otherwise."""
        before = read_record(folder / "config.yaml")["task"]["measures"]
        return any(not _finished(folder / run) for run in self._runs) or build(before, "task.measures") != self.measures

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Run, measure and report, from where the folder stands. Returns the final metrics.

        Raises:
            ConfigError: a stage that is needed is missing, or a stage's overrides are wrong; before anything runs.
            StageFailedError: a stage failed; those before it stay.
            SweepInterrupted: a signal came.
        """
        self._require_stages(folder.path)
        state = State(folder)
        plan = self._plan(folder, state)
        settings, notes = self._settings(folder.path, plan)
        for number, run in enumerate(self._runs, 1):
            title = f"stage {number} of {len(self._runs)}: {run}"
            if run == "rl_sft":
                self._set_length(state, plan)
            self._run_stage(state, run, plan[run], title)
        done = [run for run in RUNS if _finished(folder.path / run)]
        if "rl_sft" in done:
            notes.append(SameTime.of(folder.path).told())
        policies = self._policies(folder.path, done)
        say(f"measuring: {', '.join(policies)}")
        measured = measure_policies(folder.path / "measures", policies, settings, self.measures, self.hardware,
                                    self.paths, self.seed)  # fmt: skip
        return self._report(folder, done, measured, notes)

    # -- what runs --------------------------------------------------------------------------------------------------

    @property
    def _runs(self) -> list[str]:
        """Stages and controls that are asked for and are runs: a base that is trained already is only measured."""
        asked = [*self.stages, *(CONTROLS[control] for control in self.controls)]
        return [run for run in RUNS if run in asked and (run != "base" or self.trains_base)]

    def _set_length(self, state: State, plan: dict[str, list[str]]) -> None:
        """Give the control by SFT as many steps as RL had time for; noted, and told. The same results of both stages
        give the same steps, so that a resumed control goes on."""
        time_of_rl = SameTime.of(state.folder.path)
        plan["rl_sft"] = laid_over(plan["rl_sft"], [override("trainer.max_steps", time_of_rl.steps)])
        state.note("rl_sft", time_of_rl.facts())
        say(time_of_rl.told())

    def _require_stages(self, folder: Path) -> None:
        # A model that is trained already may have been taught to answer.
        spared = () if self.trains_base else ("base", "sft")
        needs: dict[str, list[StageName]] = {
            run: [one for one in NEEDS.get(run, ()) if one not in spared] for run in self.stages
        }
        needs |= {CONTROLS[control]: ["sft"] for control in self.controls if control == "sft"}
        for run, needed in ((run, one) for run, each in needs.items() for one in each):
            if needed not in self.stages and not _finished(folder / needed):
                wanted = [s for s in STAGES if s in (*self.stages, needed)]
                raise ConfigError(
                    f"task.stages={self.stages}: {run} needs {needed}, which has not run in {folder}. Add it "
                    f"(task.stages=[{','.join(wanted)}]), or go on in the folder of a pipeline that ran it "
                    "(its command with resume=<folder> and these stages)."
                )

    def _plan(self, folder: RunFolder, state: State) -> dict[str, list[str]]:
        """Overrides of every stage."""
        if not state.begun:  # only the first command says which groups were chosen
            state.begin(as_overrides(folder.record, ["model"], chosen("model")))
        base = state.base
        shared = as_overrides(folder.record, [group for group in SHARED if group in folder.record])
        there = [run for run in RUNS if run in (*self.stages, *self._runs) or _finished(folder.path / run)]
        return planned(folder.path, self.given, there, base, shared, self.trains_base, self._deals(state, there))

    def _deals(self, state: State, there: Sequence[str]) -> bool:
        """Whether DPO and the reward model are dealt the pairs: not where one of them has learned from all already."""
        undealt = [
            stage
            for stage in DEALT
            if _finished(state.folder.path / stage)
            and not any(key_of(text) == "task.data.folds" for text in state.noted(stage).get("overrides", []))
        ]
        return set(DEALT) <= set(there) and not undealt

    def _settings(self, folder: Path, plan: dict[str, list[str]]) -> tuple[StageSettings, list[str]]:
        """The stages' own settings: of all that will run, built and their data looked up before the first one runs;
        and what is to be known of the judge."""
        built: dict[str, Any] = {}
        done = [stage for stage in STAGES if _finished(folder / stage)]
        for stage in STAGES:
            if stage != "base" and stage not in (*done, *self.stages):
                continue
            with told_of(stage, self.given):
                config = composed(plan[stage])
                if stage == "base":
                    built |= {key: build(config.task[key], f"task.{key}") for key in ("data", "evaluation")}
                    if self.trains_base:
                        checked(config, plan[stage])
                else:
                    built[stage] = build(with_stand_ins(config).task)
        for control in (CONTROLS[name] for name in self.controls):
            with told_of(control, self.given):
                build(with_stand_ins(composed(plan[control])).task)
        for stage in self.stages:  # only now: to look for data may mean to wait for the network
            if stage in built and stage not in done:
                with told_of(stage, self.given):
                    look_up(built[stage], self.paths.mirror)
        asked = next((built[stage] for stage in ("rl", "best_of_n") if stage in built), None)
        judge = self.measures.judge or (str(folder / "reward_model") if "reward_model" in built else None)
        settings = StageSettings(built["data"], built["evaluation"], built.get("sft"), built.get("dpo"), asked, judge)
        return settings, self._notes_of(settings, built)

    def _notes_of(self, settings: StageSettings, built: dict[str, Any]) -> list[str]:
        """What makes the judge less than independent of the policies, told before anything runs."""
        from modern_llm.runs.pipeline.duels import dependence

        judge, given = settings.judge, self.measures.judge
        if judge is None:
            return []
        if given is not None and settings.dpo is None and settings.asked is None:
            raise ConfigError(
                f"task.measures.judge={given!r}: there is nothing to judge, for the prompts are those of dpo, rl or "
                "best_of_n, none of which is among task.stages. Add one, or use null."
            )
        if given is not None or _finished(Path(judge)):
            known = known_problems(judge)
        else:
            with told_of("reward_model", self.given):
                known = built["reward_model"].known_problems()
        with told_of("dpo", self.given):
            notes = dependence(judge, known, settings.dpo, getattr(built.get("rl"), "reward", None))
        for note in notes:
            say(f"note: {note}")
        return notes

    def _run_stage(self, state: State, stage: str, overrides: list[str], title: str) -> None:
        path, before = state.folder.path / stage, state.noted(stage)
        if before and path.is_dir() and essential(before.get("overrides", [])) != essential(overrides):
            # Another policy stands before it now, say; what was made stays beside.
            say(f"{title}: was run with other settings before; that run is kept as {set_aside(path).name}")
        if _finished(path):
            say(f"{title}: finished before")
            return
        say(title)
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        state.note(stage, {"overrides": overrides, "status": "running", "started": started})
        start = time.monotonic()
        status = run_in_process(overrides, path)
        ended = job_status(path)
        state.note(stage, {"status": ended, "seconds": round(time.monotonic() - start, 1)})
        if status != 0 or ended != "finished":
            raise StageFailedError(
                f"stage {stage} did not finish ({ended}). Its record is in {path}. When the cause is mended, go on "
                "with the same command and resume=auto; stages that are done are not done again."
            )

    def _policies(self, folder: Path, done: Sequence[str]) -> dict[str, Policy]:
        """Name -> policy; the base first."""
        there = [run for run in RUNS if run in done or (run == "base" and not self.trains_base)]
        found: dict[str, Policy] = {}
        for run in there:
            if run in (*POLICIES, *CONTROLS.values()):
                choice = ModelFromRun(str(folder / run)) if run in done else self.model
                before = policy_before(run, there) if run != "base" else None
                found[run] = Policy(choice, before, "rl" if run in CONTROLS.values() else None)  # type: ignore[arg-type]
        return found

    # -- what came of it --------------------------------------------------------------------------------------------

    def _report(
        self,
        folder: RunFolder,
        done: Sequence[str],
        measured: dict[str, dict[str, Any]],
        notes: Sequence[str],
    ) -> dict[str, float]:
        from modern_llm.reporting.pages.pipeline import StageOutcome, write_pipeline_report

        outcomes = [
            StageOutcome(stage, RunRecord.read(folder.path / stage), measured.get(stage, {}))
            for stage in RUNS
            if stage in done or stage in measured
        ]
        metrics: dict[str, float] = {}
        for outcome in outcomes:
            metrics |= outcome.metrics()
        if self.objective_metric not in metrics:
            raise ConfigError(
                f"task.objective_metric={self.objective_metric!r}: is not measured. Choose among {', '.join(metrics)}."
            )
        folder.write_result(
            self.objective_metric,
            metrics,
            [name for name in _OBJECTIVES.values() if name in metrics],
            stages=list(done),
            notes=list(notes),
            samples=[sample for outcome in outcomes for sample in outcome.samples()],
        )
        written = write_pipeline_report(folder.path, outcomes, notes)
        print(written["table"].read_text(encoding="utf-8"))
        tell_paths({"result": folder.path / "result.json", **written})
        return metrics


def _finished(folder: Path) -> bool:
    return job_status(folder) == "finished"

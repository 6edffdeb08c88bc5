"""Several runs with one command: each a step with its overrides and the steps that it needs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig

from modern_llm.checks import require
from modern_llm.config.composing import composed
from modern_llm.config.differences import differences
from modern_llm.config.instantiate import LINKS, ConfigError
from modern_llm.config.messages import in_words, is_mistake
from modern_llm.config.overrides import group_of, quoted, require_own
from modern_llm.config.records import read_record
from modern_llm.defaults import ROOT, Defaults
from modern_llm.experiment.contract import Paths, RunFolder, say, tell_paths
from modern_llm.files import write_text
from modern_llm.reporting.record import RunRecord, job_status
from modern_llm.runs.checked import checked, settled_and_typed
from modern_llm.runs.commands import run_in_process
from modern_llm.runs.folder import hold_run
from modern_llm.runs.resume import settled
from modern_llm.runs.sweep import set_aside
from modern_llm.training.logs.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware

# The folder of a step, and what is named inside it.
_STEP = re.compile(r"\{(\w+)\}([\w./-]*)")
_PLAN = "folder"  # stands for the plan's own folder
# Where a run is kept, on what it runs and how it is watched does not make it another run.
_NOT_PART_OF_A_STEP = ("name", "hardware", "logger", "paths", "tags", "vars")


_DEFAULTS = Defaults("task/plan")


@dataclass(frozen=True)
class Plan:
    """Run every step that is not finished, in the order of what they need, each in a process and a folder of its own;
    then set them beside each other. A step that fails leaves the others standing; those that need it are skipped.

    Args:
        steps: name -> `overrides` of the run, and `needs`, names of steps that must be finished before it; `{name}` in
            an override is the folder of a step, which it then needs; `{folder}` is that of the plan.
        common: overrides of every step that reads them, before its own.
        folder: holds a folder per step, from one command to the next.
        hardware, logger, paths, seed: of the same names in the configuration; what is typed of them goes to every step
            that reads them.

    Raises:
        ValueError: a step that is not described as it should be, or needs what is not there, or itself.
        ConfigError: an override that no step may be given.
    """

    steps: Any
    hardware: Hardware
    folder: str
    common: list[str] = _DEFAULTS("common")
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    objective_metric: ClassVar[str] = "finished"
    # Its steps do.
    measures_precision: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(isinstance(self.steps, dict) and bool(self.steps), "task.steps", self.steps, "names no step",
                "Give name: {overrides: [...], needs: [...]}, or choose experiment=smoke")  # fmt: skip
        for name, step in self.steps.items():
            key = f"task.steps.{name}"
            require(re.fullmatch(r"\w+", str(name)) is not None and name != _PLAN, key, name, "is no name",
                    f"Use letters, digits and _, and not {_PLAN}")  # fmt: skip
            right = isinstance(step, dict) and not {*step} - {"overrides", "needs"} and "overrides" in step
            right = right and all(isinstance(v, list) and all(isinstance(x, str) for x in v) for v in step.values())
            require(right, key, step, "must have overrides and may have needs, both lists of texts",
                    "Write {overrides: [task=python_docs], needs: []}")  # fmt: skip
            for needed in self._needs(name):
                require(needed in self.steps, f"{key}.needs", needed, "is no step",
                        f"Choose among {', '.join(self.steps)}")  # fmt: skip
            require_own(key, [_filled(text, lambda _: "x") for text in step["overrides"]])
        require_own("task.common", [_filled(text, lambda _: "x") for text in self.common])
        list(self._in_order())

    def _needs(self, name: str) -> list[str]:
        """Steps that must be finished before one."""
        step = self.steps[name]
        named = [found for override in step["overrides"] for found, _ in _STEP.findall(override) if found != _PLAN]
        return list(dict.fromkeys([*step.get("needs", []), *named]))

    def _in_order(self) -> Iterator[str]:
        """Names of steps, each behind what it needs, else as they stand in the configuration."""
        done: set[str] = set()
        while len(done) < len(self.steps):
            ready = next((n for n in self.steps if n not in done and {*self._needs(n)} <= done), None)
            require(ready is not None, "task.steps", [n for n in self.steps if n not in done],
                    "need each other in a circle", "Take one of the needs out")  # fmt: skip
            assert ready is not None
            done.add(ready)
            yield ready

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Run what is not finished, and report. Returns how many steps are finished, failed and skipped.

        Raises:
            SystemExit: status 1, at the end, where a step failed.
            SweepInterrupted: a signal came; the same command goes on.
        """
        base, ended = Path(self.folder).expanduser(), dict[str, str]()
        base.mkdir(parents=True, exist_ok=True)
        hold_run(base)
        order = list(self._in_order())
        say(f"plan: {len(order)} steps in {base}")
        refused = self._refused(base, order)
        for number, name in enumerate(order, 1):
            missing = [needed for needed in self._needs(name) if ended[needed] != "finished"]
            if missing:
                ended[name] = f"skipped: it needs {', '.join(missing)}"
                say(f"  - {number}/{len(order)} {name}  {ended[name]}")
                continue
            if name in refused:
                ended[name] = f"failed: {refused[name]}"
                say(f"  ✗ {number}/{len(order)} {name}  refused")
                continue
            status, seconds, before = self._step(base, name)
            ended[name] = status
            mark = "✓" if status == "finished" else "✗"
            took = "finished before" if before else f"{status}, {seconds:.0f} s"
            say(f"  {mark} {number}/{len(order)} {name}  {took}{_headline(base / name) if mark == '✓' else ''}")
            if status != "finished":
                say(f"    its output is in {base / name / 'output.txt'}")
        return self._report(folder, base, ended)

    def _refused(self, base: Path, order: list[str]) -> dict[str, str]:
        """Steps that could never run, and why: all are composed and checked before the first one runs. Of one that
        reads what others make, values can only be checked when those are there; keys and types can be now."""
        refused = {}
        for name in order:
            there = all(job_status(base / needed) == "finished" for needed in self._needs(name))
            try:
                overrides = [*self._overrides(base, name), f"name={name}"]
                (checked if there else settled_and_typed)(composed(overrides), overrides)
            except Exception as cause:
                if not is_mistake(cause):
                    raise
                refused[name] = in_words(cause, self.steps[name]["overrides"])
                say(f"  ✗ {name} is refused: {refused[name]}")
                if (base / name / "config.yaml").is_file():
                    continue  # a run that is there keeps its record
                (base / name).mkdir(parents=True, exist_ok=True)
                write_text(base / name / "failure.txt", refused[name] + "\n")
        return refused

    def _step(self, base: Path, name: str) -> tuple[str, float, bool]:
        """Run a step unless it is finished: its status, seconds, and whether it was finished before."""
        path = base / name
        overrides = self._overrides(base, name)
        if (path / "config.yaml").exists():
            wanted = settled(composed([*overrides, f"name={name}"]))
            try:
                recorded = read_record(path / "config.yaml")
                changed = [key for key in differences(recorded, wanted) if not _bystander(key)]
            except ConfigError as damaged:
                say(f"    {damaged}")
                changed = ["config.yaml"]
            stale = [needed for needed in self._needs(name) if _started(base / needed) > _started(path)]
            if changed or stale:
                why = f"{', '.join(changed[:3])} changed" if changed else f"{', '.join(stale)} was done again"
                say(f"    {name}: {why}; the run of before is kept as {set_aside(path).name}")
            elif job_status(path) == "finished":
                return "finished", 0.0, True
        path.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        run_in_process([*overrides, f"name={name}"], path, path / "output.txt")
        return job_status(path), time.monotonic() - start, False

    def _overrides(self, base: Path, name: str) -> list[str]:
        """What a step is run with: what all have, its own, and of what was typed that which it reads."""

        def filled(override: str) -> str:
            return _filled(override, lambda step: str((base if step == _PLAN else base / step).resolve()))

        own = [filled(override) for override in self.steps[name]["overrides"]]
        task = composed([*own, f"name={name}"]).task
        read = {"paths", *(link for link in LINKS if link in task)}

        def suits(override: str) -> bool:
            return group_of(override) not in LINKS or group_of(override) in read

        typed = [o for o in HydraConfig.get().overrides.task if group_of(o) in LINKS and suits(o)]
        # What comes later wins: a step's own stands against what all have, and what is typed against both.
        return [*(filled(o) for o in self.common if suits(o)), *own, *typed]

    def _report(self, folder: RunFolder, base: Path, ended: dict[str, str]) -> dict[str, float]:
        from modern_llm.reporting.comparison.compare import Comparison
        from modern_llm.reporting.tables import markdown
        from modern_llm.tasks.report import write_comparison

        there = [name for name in self.steps if (base / name).is_dir()]
        remarks = [f"{name}: {status}" for name, status in ended.items() if status.startswith("skipped")]
        runs = [RunRecord.read(base / name) for name in there]
        compared = Comparison(runs, there, kind="step", remarks=remarks)
        title = f"Plan {base.name}"
        written = write_comparison(folder.path, compared, title, f"{len(self.steps)} steps in {base}")
        rows = [{"step": n, "status": s, "figures": _headline(base / n).strip()} for n, s in ended.items()]
        metrics: dict[str, float] = {
            "finished": sum(status == "finished" for status in ended.values()),
            "failed": sum(status.startswith(("failed", "interrupted", "not run")) for status in ended.values()),
            "skipped": sum(status.startswith("skipped") for status in ended.values()),
        }
        folder.write_result(self.objective_metric, metrics, steps=ended, notes=remarks)
        print(markdown(["step", "status", "figures"], rows))
        tell_paths(written)
        if metrics["finished"] < len(self.steps):
            print("Steps that are not finished are run again by the same command.", file=sys.stderr)
            raise SystemExit(1)
        return metrics


def _filled(override: str, place: Callable[[str], str]) -> str:
    """An override with folders in place of names of steps, quoted where Hydra would read signs in them."""

    def folder(found: re.Match[str]) -> str:
        path = place(found[1]) + found[2]
        in_quotes = found.start() > 0 and override[found.start() - 1] in "'\""
        return path if in_quotes or re.fullmatch(r"[\w./-]+", path) else quoted(path)

    return _STEP.sub(folder, override)


def _bystander(key: str) -> bool:
    return any(f"{key}.".startswith(f"{part}.") for part in _NOT_PART_OF_A_STEP)


def _started(folder: Path) -> str:
    """When a run's last sitting began, as its record says; files may have been copied since."""
    sittings = RunRecord.read(folder).sittings
    return str(sittings[-1].get("time", "")) if sittings else ""


def _headline(folder: Path) -> str:
    """The first figures of a finished run, for the progress view."""
    from modern_llm.reporting.metric_names import headline
    from modern_llm.reporting.tables import shown

    run = RunRecord.read(folder)
    return "".join(f"  {name} {shown(run.metrics[name])}" for name in headline(run.result, run.metrics)[:2])

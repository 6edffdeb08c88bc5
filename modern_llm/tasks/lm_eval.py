"""Tasks of lm-evaluation-harness (Gao et al. 2021, doi 10.5281/zenodo.5371628) on any causal model of this project."""

from __future__ import annotations

import difflib
import logging
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.rows import content_fingerprint
from modern_llm.defaults import ROOT, Defaults
from modern_llm.evaluation.error_analysis import Z
from modern_llm.experiment.contract import Paths, RunFolder, progress_of, say
from modern_llm.experiment.record import Measured, conclude, evaluated_on
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_FIRST_SCORE = "score"
_DEFAULTS = Defaults("task/lm_eval")


@dataclass(frozen=True)
class LMEval:
    """Ask a model what the harness's tasks ask, and record their figures with standard errors, versions and numbers of
    examples. Data sets are looked for in the mirror first.

    Args:
        model, hardware, paths, seed: of the same names in the configuration; the seed draws the examples of a prompt.
        tasks: names of tasks, groups and tags, or patterns of them.
        num_fewshot: examples in front of each question; null: what each task says.
        limit: questions of each task, the first ones; null: all.
        include_path: a folder with task files of your own.
        apply_chat_template: questions and examples as turns of a conversation.
        bootstrap_iters: resamples for standard errors that have no closed form; 0: no standard errors.
        objective_metric: final metric that a sweep optimises; `score` is the first figure of the first task.

    Raises:
        ValueError: an impossible value, or the harness is not installed.
    """

    model: PretrainedModel | ModelFromRun
    hardware: Hardware
    tasks: list[str]
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    num_fewshot: int | None = _DEFAULTS("num_fewshot")
    limit: int | None = _DEFAULTS("limit")
    include_path: str | None = _DEFAULTS("include_path")
    apply_chat_template: bool = _DEFAULTS("apply_chat_template")
    bootstrap_iters: int = _DEFAULTS("bootstrap_iters")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        require(find_spec("lm_eval") is not None, "task", "lm_eval", "needs lm-evaluation-harness, which is not here",
                "pip install -e '.[lm_eval]'")  # fmt: skip
        require(bool(self.tasks), "task.tasks", self.tasks, "names none", "Use [blimp] or [arc_easy,hellaswag]")
        for key, least in (("num_fewshot", 0), ("limit", 1), ("bootstrap_iters", 0)):
            value = getattr(self, key)
            require(value is None or value >= least, f"task.{key}", value, f"must be at least {least}", "Raise it")
        require(self.include_path is None or Path(self.include_path).expanduser().is_dir(), "task.include_path",
                self.include_path, "is no folder", "Give a folder with task files, or null")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Ask and record. Returns the final metrics.

        Raises:
            ValueError: a task that there is not, or whose data or questions cannot be had; the message says which.
        """
        from modern_llm.evaluation.harness import HarnessLM, task_manager
        from modern_llm.experiment.loading import load_model
        from modern_llm.training.runtime import Runtime

        _quiet()
        from lm_eval import simple_evaluate

        runtime, mirror = Runtime(self.hardware), self.paths.mirror
        manager = task_manager(None if self.include_path is None else str(Path(self.include_path).expanduser()), mirror)
        names = _known(self.tasks, manager)
        tasks = [_loaded(name, manager) for name in names]
        loaded = load_model(self.model, runtime, mirror, [], train=False).merged()
        loaded.decoder.eval()
        has_template = loaded.tokenizer.chat_template is not None
        require(has_template or not self.apply_chat_template, "task.apply_chat_template", True,
                "needs a chat template, and the model's tokenizer has none", "Use false, or a chat model")  # fmt: skip
        say(f"lm-evaluation-harness: {', '.join(names)}")
        start = time.perf_counter()
        with runtime.autocast():
            found: dict[str, Any] = simple_evaluate(
                model=HarnessLM(loaded, self.hardware.eval_rows, self.seed, progress_of("asking")),
                tasks=[task for group in tasks for task in group],
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                bootstrap_iters=self.bootstrap_iters,
                apply_chat_template=self.apply_chat_template,
                task_manager=manager,
                random_seed=self.seed,
                numpy_random_seed=self.seed,
                torch_random_seed=self.seed,
                fewshot_random_seed=self.seed,
            )
        return self._conclude(folder, runtime, loaded, found, time.perf_counter() - start)

    def _conclude(
        self, folder: RunFolder, runtime: Any, loaded: Any, found: dict[str, Any], seconds: float
    ) -> dict[str, float]:
        rows = figures(found)
        metrics: dict[str, float] = {_FIRST_SCORE: rows[0]["value"]}
        for row in rows:
            name = "_".join(filter(None, [row["task"], row["filter"], row["metric"]]))
            metrics[name] = row["value"]
            if row["stderr"] is not None:
                metrics |= {f"{name}_low": row["value"] - Z * row["stderr"],
                            f"{name}_high": row["value"] + Z * row["stderr"]}  # fmt: skip
        asked = sum(counts["effective"] for counts in found["n-samples"].values())
        samples = {task: [_sample(sample) for sample in rows] for task, rows in found.get("samples", {}).items()}
        folder.write_lines("samples.jsonl", [{"task": task, **row} for task, rows in samples.items() for row in rows])
        headline = [name for name in metrics if not name.endswith(("_low", "_high")) and name != _FIRST_SCORE]
        measured = Measured(
            metrics | {"questions": asked, "seconds": seconds, "questions_per_second": asked / seconds,
                       "parameters": loaded.parameter_counts()[0], "peak_memory_gb": runtime.peak_memory_gb()},
            headline[:12],
            {"": evaluated_on(content_fingerprint(samples), asked, loaded.tokenizer.fingerprint)},
            {
                "harness": f"lm-eval {found.get('lm_eval_version', '')}",
                "tasks": self.tasks,
                "num_fewshot": self.num_fewshot if self.num_fewshot is not None else "as each task says",
                "limit": self.limit or "all",
                "apply_chat_template": self.apply_chat_template,
                "interval": "95 %, 1.96 of the harness's standard errors to either side",
                "base_fingerprint": loaded.fingerprint,
            },
            {"tables": {"By task": rows}},
        )  # fmt: skip
        require(self.objective_metric in metrics, "task.objective_metric", self.objective_metric, "is not measured",
                f"Choose among {', '.join([_FIRST_SCORE, *headline])}")  # fmt: skip
        return conclude(folder, runtime, self.objective_metric, measured)


def _quiet() -> None:
    """The harness's own log is about itself; what matters is said by the task."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _known(asked: list[str], manager: TaskManager) -> list[str]:
    """Names that the harness knows, patterns resolved.

    Raises:
        ValueError: it knows none of that name; the nearest ones are told.
    """
    names: list[str] = []
    for name in asked:
        matched = manager.match_tasks([name])
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        require(bool(matched), "task.tasks", name, "is no task, group or tag of lm-evaluation-harness",
                f"The nearest are {', '.join(near)}" if near else "`lm-eval ls tasks` lists them all")  # fmt: skip
        names += matched
    return list(dict.fromkeys(names))


def _loaded(name: str, manager: TaskManager) -> list[Any]:
    """A task, or the group or the tasks that a name stands for, with their data.

    Raises:
        ValueError: its data are nowhere, or it cannot be built here.
    """
    try:
        found = manager.load([name])
    except Exception as cause:  # whatever a task's own code may raise
        why = next(iter(str(cause).strip().splitlines()), "no message")
        raise ValueError(
            f"task.tasks={name!r}: cannot be loaded ({type(cause).__name__}: {why}). Connect to the network once, or "
            "put its data set at <mirror>/datasets/<owner>/<name> and set paths.mirror=<mirror>."
        ) from cause
    inner = {child for children in found["group_map"].values() for child in children}
    groups = [group for key, group in found["groups"].items() if key not in inner]
    return groups or list(found["tasks"].values())


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure of the harness's result, with its standard error, examples, version and shots."""
    rows = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            counts = found["n-samples"].get(task)
            rows.append({
                "task": task,
                "metric": metric,
                "filter": "" if chosen == "none" else chosen,
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                "examples": counts["effective"] if counts else values.get("sample_len"),
                "version": found["versions"].get(task),
                "shots": found["n-shot"].get(task),
            })  # fmt: skip
    return rows


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one question: where it stands, what it was asked with, and what came."""
    keys = ("doc_id", "target", "arguments", "filtered_resps", "filter")
    return {key: sample[key] for key in keys if key in sample}

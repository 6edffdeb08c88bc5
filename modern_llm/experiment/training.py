"""The way that everything that trains goes: seed, machine, data, model, fit, best checkpoint, measure, record.

A task fills in `load`, `parts` and `measure`; it does not walk the way itself. A new objective on models that are
there already is a subclass of `TrainingTask` and its YAML in `conf/task/`; `tasks/sft.py` is the shortest one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.defaults import ROOT
from modern_llm.evaluation.metrics.registry import directions
from modern_llm.experiment.contract import Paths, RunFolder, say
from modern_llm.files import write_json, write_text
from modern_llm.processes import join, world
from modern_llm.training.logs.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware, TrainerSettings

if TYPE_CHECKING:
    from pathlib import Path

    from modern_llm.data.batches import Collate, Sized
    from modern_llm.evaluation.metrics.registry import Direction
    from modern_llm.experiment.record import Measured
    from modern_llm.objectives.base import Objective
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.callbacks import Callback
    from modern_llm.training.contract import DataStream, Evaluator
    from modern_llm.training.memory.plan import MemoryPlan, Step
    from modern_llm.training.runtime import Runtime


_SHORTEST = 8  # tokens of a text from which anything can be learned


@dataclass
class Session:
    """What a run has at hand, filled in on its way.

    Attributes:
        folder: of the run.
        runtime: the machine.
        data: what the task read; whatever it keeps for later.
        loaded: the model, from `TrainingTask.load` on.
        checkpoint: the best one, once the run has trained.
    """

    folder: RunFolder
    runtime: Runtime
    data: Any = None
    loaded: LoadedModel = None  # type: ignore[assignment]  # there before any hook reads it
    checkpoint: Path | None = None

    @property
    def rows(self) -> int:
        """Texts per batch of an evaluation."""
        return self.runtime.hardware.eval_rows


@dataclass(frozen=True)
class Parts:
    """What the loop is given.

    Attributes:
        stream: one batch per optimiser step. It may draw from the policy, which `Session.loaded` holds.
        objective: what is minimised.
        evaluator: measures during training, on what is kept from it.
    """

    stream: DataStream
    objective: Objective
    evaluator: Evaluator


@dataclass(frozen=True, kw_only=True)
class TrainingTask(ABC):
    """A task that trains.

    Args:
        model, trainer, hardware, logger, paths, seed: of the same names in the configuration.
        suggested_steps: what `trainer.max_steps` is unless set.
        objective_metric: final metric that a sweep optimises.

    Raises:
        ValueError: an impossible combination.
    """

    may_have_processes: ClassVar[bool] = True

    model: Any
    trainer: TrainerSettings
    hardware: Hardware
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = ROOT("seed")
    suggested_steps: int
    objective_metric: str

    def __post_init__(self) -> None:
        require_positive(self, *(f.name for f in fields(self) if f.name.startswith(("max_", "suggested_", "seq_"))))
        shortest = getattr(self, "max_tokens", _SHORTEST)
        require(shortest >= _SHORTEST, "task.max_tokens", shortest, f"must be at least {_SHORTEST}", "Raise it")
        require(self.hardware.weights == "fp32" or self.trainer.average is None, "hardware.weights",
                self.hardware.weights, "holds no average: most of what is added to it would be rounded away",
                "Use trainer/average=none or hardware.weights=fp32")  # fmt: skip

    # -- what a task fills in ---------------------------------------------------------------------------------------

    def machine(self) -> Runtime:
        """The machine."""
        from modern_llm.training.runtime import Runtime

        return Runtime(self.hardware)

    def read(self, at: Session) -> Any:
        """What must be known before the model is loaded: mistakes in the data, a tokenizer. Kept in `at.data`."""
        return None

    @abstractmethod
    def load(self, at: Session) -> LoadedModel:
        """The model on the machine. The generators are seeded when this is called."""

    @abstractmethod
    def parts(self, at: Session) -> Parts:
        """Data, objective and evaluation of the training."""

    @abstractmethod
    def measure(self, at: Session) -> Measured:
        """The final figures of the model at its best checkpoint, in evaluation mode. What every training has (steps,
        tokens, seconds, parameters, memory) is added."""

    def trains(self) -> bool:
        """Whether the run trains, or measures the model as it is."""
        return True

    def flops_per_token(self, at: Session) -> float:
        """Operations of a training step per token."""
        return at.loaded.flops_per_token()

    def sketch(self, at: Session) -> LoadedModel:
        """The model for the memory plan, where tensors have no content: that of `load`, without reading data."""
        return self.load(at)

    def rehearsal(self, at: Session) -> Step:
        """What a step is made of, for the memory plan: rows as long as the task lets them be, of any content.

        Raises:
            ValueError: the task does not tell.
        """
        raise ValueError(
            f"hardware.memory_limit_gb={self.hardware.memory_limit_gb}: task={type(self).__name__} does not tell what "
            "its step is made of, so its memory cannot be planned. Give it a rehearsal, or set the limit to null and "
            "hardware.micro_batch_size to a number."
        )

    # -- the way ----------------------------------------------------------------------------------------------------

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Train from where the folder stands, then measure and report. Returns the final metrics."""
        from modern_llm.experiment.memory import fitted, tell_plan

        task, plan = fitted(self, folder)
        if plan is not None and self.hardware.plan_only:
            return tell_plan(task, folder, plan)
        return task._run(folder, plan)

    def _run(self, folder: RunFolder, plan: MemoryPlan | None) -> dict[str, float]:
        import torch

        from modern_llm.experiment.record import conclude

        at = Session(folder, self.machine())
        join(at.runtime.device.type)  # not where a machine is only asked for its precision, as the first process does
        at.data = self.read(at)
        torch.manual_seed(self.seed)  # behind the reading, of which a resumed run may find a part done
        at.loaded = self.load(at)
        tell_model(at.loaded, at.runtime, self.trains())
        trained = self._fit(at) if self.trains() else {}
        at.loaded.model.eval()
        with torch.no_grad(), at.runtime.autocast():
            measured = self.measure(at)
        every, learned = at.loaded.parameter_counts()
        measured.metrics |= {
            **trained,
            "parameters": every,
            "trained_parameters": learned if self.trains() else 0,
            "peak_memory_gb": at.runtime.peak_memory_gb(),
        }
        measured.protocol |= {"base_fingerprint": at.loaded.fingerprint}
        if plan is not None:
            measured.metrics["planned_memory_gb"] = plan.tensors / 1e9
            measured.protocol |= {"memory_plan_gb": plan.in_gb(), "micro_batch_size": self.hardware.micro_batch_size}
        if not world().is_first:
            return measured.metrics
        metrics = conclude(folder, at.runtime, self.objective_metric, measured, at.checkpoint)
        if self.trains():
            self._write_card(at)
        return metrics

    def _write_card(self, at: Session) -> None:
        """Beside what was saved in Hugging Face's format, what it is."""
        from modern_llm.reporting.model_card import model_card

        loaded, folder = at.loaded, at.folder.path
        for name, form in (("model", "hugging_face"), ("adapter", "adapter")):
            if (folder / name).is_dir():
                size, kind = loaded.parameter_counts()[0], type(loaded.base).__name__
                card = model_card(folder, loaded.name, kind, size, loaded.context, form, None)
                write_text(folder / name / "README.md", card)

    def _watchers(self, folder: RunFolder) -> list[Callback]:
        """Who watches the training."""
        from modern_llm.training.callbacks import Progress

        watchers = [self.logger, *self.trainer.callbacks.values()]
        asked = [callback for watcher in watchers for callback in watcher.callbacks(folder.path, folder.record)]
        return [Progress(), *asked, *folder.watchers]

    def _fit(self, at: Session) -> dict[str, float]:
        """Train, leave the model at its best checkpoint, and save it in its own format. Returns the metrics that every
        training has."""
        from modern_llm.experiment.auto_config import auto_config
        from modern_llm.experiment.loading import describe_model, require_same_base
        from modern_llm.training.checkpoint import load_model_tensors
        from modern_llm.training.trainer import Trainer

        loaded, folder, known = at.loaded, at.folder, at.data
        require_same_base(folder.path, loaded)

        def save_extras(checkpoint: Path) -> None:
            checkpoint.joinpath("config.yaml").write_text(describe_model(self.model, loaded))
            loaded.tokenizer.save(checkpoint / "tokenizer")
            described = auto_config(loaded)
            if described is not None:
                write_json(checkpoint / "config.json", described)
                write_json(folder.path / "config.json", described)

        parts = self.parts(at)
        trainer = Trainer(
            self.trainer,
            at.runtime,
            folder.path,
            callbacks=self._watchers(folder) if world().is_first else [],
            save_extras=save_extras,
        )
        per_token = self.flops_per_token(at)
        result = trainer.fit(loaded.model, parts.objective, parts.stream, parts.evaluator, per_token)
        of_data = trainer.data.facts()  # the stream itself may have been read ahead
        at.checkpoint = result.best_checkpoint or result.last_checkpoint
        in_pieces = trainer.parallel.in_pieces
        if in_pieces:  # what measures and writes takes whole weights, and needs nothing else of the training
            del trainer
            learned, at.data = at.data, known
            loaded = at.loaded = self.load(at)
            at.data = learned
        if at.checkpoint is not None and (in_pieces or at.checkpoint != result.last_checkpoint):
            load_model_tensors(loaded.model, at.checkpoint)
        if world().is_first:
            loaded.save(folder.path / ("adapter" if loaded.adapter is not None else "model"))
        return {
            "train_loss": result.train_loss,
            "steps": result.step,
            "tokens": result.tokens,
            "flops": per_token * result.tokens,
            "seconds": result.seconds,
            "tokens_per_second": result.tokens / result.seconds if result.seconds else 0.0,
            "skipped_steps": result.skipped_steps,
            **of_data,
        }


# -- what tasks share -----------------------------------------------------------------------------------------------


def require_positive(task: Any, *keys: str) -> None:
    """Refuse counts below one; null stands for no limit."""
    require(task.seed >= 0, "seed", task.seed, "must not be negative", "Use 0 or more")
    for key in keys:
        value = getattr(task, key)
        require(value is None or value >= 1, f"task.{key}", value, "must be at least 1", "Raise it")


def require_metric(task: Any, measured: Sequence[str], monitored: Sequence[str]) -> None:
    """Refuse to optimise or monitor what is not measured."""
    require(task.objective_metric in measured, "task.objective_metric", task.objective_metric, "is not measured",
            f"Choose among {', '.join(measured)}")  # fmt: skip
    monitors = [f"validation_{name}" for name in monitored]
    require(task.trainer.monitor in monitors, "trainer.monitor", task.trainer.monitor,
            "is not measured during training", f"Choose among {', '.join(monitors)}")  # fmt: skip


def tell_model(loaded: LoadedModel, runtime: Runtime, train: bool) -> None:
    """Say what is used, on what."""
    every, trained = loaded.parameter_counts()
    trains = f", {trained / 1e6:.2f}M of them trained" if train else ""
    say(f"model: {loaded.name}, {every / 1e6:.1f}M parameters{trains}; {runtime.device}, {runtime.precision}")


def tell_skipped(what: str, count: int, skipped: dict[str, int]) -> None:
    """Say how many examples there are, and why others were left out."""
    left_out = "; ".join(f"{n} left out: {why}" for why, n in skipped.items())
    say(f"{what}: {count:,} examples" + (f" ({left_out})" if left_out else ""))


class Selection:
    """The evaluation during training: the objective on examples that are kept from training, and what else is
    monitored.

    Args:
        at: of the run.
        objective: what is minimised.
        items: the examples.
        collate: makes a batch of them.
        further: what costs more than the loss, and is taken because `trainer.monitor` asks for it: names, and what
            measures them.
    """

    def __init__(
        self,
        at: Session,
        objective: Objective,
        items: Sequence[Sized],
        collate: Collate,
        further: tuple[Sequence[str], Callable[[], dict[str, float]]] | None = None,
    ) -> None:
        self.at, self.objective, self.items, self.collate = at, objective, items, collate
        self.further = further
        every = ["loss", *objective.metrics, *(further[0] if further is not None else ())]
        self.metrics: dict[str, Direction] = directions([f"validation_{name}" for name in every])

    def __call__(self, model: Any) -> dict[str, float]:
        from modern_llm.evaluation.answering import mean_loss

        at = self.at
        found = mean_loss(model, self.objective, self.items, self.collate, at.rows, at.runtime.device)
        if self.further is not None:
            names, measure = self.further
            more = measure()
            found |= {name: more[name] for name in names}
        return {f"validation_{name}": value for name, value in found.items()}

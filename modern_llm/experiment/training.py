"""What the tasks on pretrained models share: the model, the loop, samples and the record."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from modern_llm.checks import require
from modern_llm.experiment.contract import Paths, RunFolder, say
from modern_llm.training.loggers import Logger
from modern_llm.training.settings import Hardware, TrainerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modern_llm.data.batches import Collate, Sized
    from modern_llm.objectives.base import Objective
    from modern_llm.pretrained.loading import LoadedModel
    from modern_llm.tasks.pretraining import Samples
    from modern_llm.training.runtime import Runtime
    from modern_llm.training.trainer import DataStream, Evaluator, TrainResult


_ENDLESS = 2**31  # T5's relative positions know no last one


class ReportingTask(Protocol):
    """What `report` asks of a task."""

    @property
    def objective_metric(self) -> str: ...


class PretrainedTask(ReportingTask, Protocol):
    """What the functions below ask of a task."""

    @property
    def model(self) -> Any: ...

    @property
    def hardware(self) -> Hardware: ...

    @property
    def paths(self) -> Paths: ...


class TrainingTask(PretrainedTask, Protocol):
    """A task that trains."""

    @property
    def trainer(self) -> TrainerSettings: ...

    @property
    def logger(self) -> Logger: ...


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
    require(task.trainer.monitor in monitored, "trainer.monitor", task.trainer.monitor,
            "is not measured during training", f"Choose among {', '.join(monitored)}")  # fmt: skip


def prepare_chat_model(task: PretrainedTask, train: bool) -> tuple[Runtime, LoadedModel]:
    """The machine, and the language model on it with a chat template: its own, or the default one.

    Raises:
        ValueError: an encoder-decoder.
    """
    from modern_llm.data.chat import with_chat
    from modern_llm.experiment.loading import is_encoder_decoder, load_model
    from modern_llm.training.runtime import Runtime

    if is_encoder_decoder(task.model, task.paths.mirror):
        raise ValueError("model: an encoder-decoder holds no conversation. Choose a decoder, such as model=gpt2.")
    runtime = Runtime(task.hardware)
    loaded = load_model(task.model, runtime, task.paths.mirror, [], train)
    if loaded.tokenizer.chat_template is None:
        say("the model's tokenizer has no chat template; the default one is used, and saved with it")
    loaded = replace(loaded, tokenizer=with_chat(loaded.tokenizer))
    tell_model(loaded, runtime, train)
    return runtime, loaded


def tell_model(loaded: LoadedModel, runtime: Runtime, train: bool) -> None:
    """Say what is used, on what."""
    every, trained = loaded.parameter_counts()
    trains = f", {trained / 1e6:.2f}M of them trained" if train else ""
    say(f"model: {loaded.name}, {every / 1e6:.1f}M parameters{trains}; {runtime.device}, {runtime.precision}")


def room_in(loaded: LoadedModel, max_tokens: int | None) -> int:
    """Longest text: `max_tokens`, or what the model was made for, where batches are padded to a multiple."""
    from modern_llm.data.batches import MULTIPLE

    context = None if loaded.context is None else loaded.context // MULTIPLE * MULTIPLE
    return min((limit for limit in (max_tokens, context) if limit is not None), default=_ENDLESS)


def tell_skipped(what: str, count: int, skipped: dict[str, int]) -> None:
    """Say how many examples there are, and why others were left out."""
    left_out = "; ".join(f"{n} left out: {why}" for why, n in skipped.items())
    say(f"{what}: {count:,} examples" + (f" ({left_out})" if left_out else ""))


def fit(
    task: TrainingTask,
    folder: RunFolder,
    runtime: Runtime,
    loaded: LoadedModel,
    data: DataStream,
    objective: Objective,
    evaluator: Evaluator,
) -> tuple[TrainResult, dict[str, float]]:
    """Train from where the folder stands, leave the model at its best checkpoint, and save it in its own format.

    Returns:
        How the loop ended, and the metrics that every training has.
    """
    from modern_llm.experiment.loading import describe_model, require_same_base
    from modern_llm.training.callbacks import Progress
    from modern_llm.training.checkpoint import load_model_tensors
    from modern_llm.training.trainer import Trainer

    require_same_base(folder.path, loaded)

    def save_extras(checkpoint: Path) -> None:
        checkpoint.joinpath("config.yaml").write_text(describe_model(task.model, loaded))
        loaded.tokenizer.save(checkpoint / "tokenizer")

    trainer = Trainer(
        task.trainer,
        runtime,
        folder.path,
        callbacks=[Progress(), *task.logger.callbacks(folder.path, folder.record)],
        save_extras=save_extras,
    )
    result = trainer.fit(loaded.model, objective, data, evaluator, loaded.flops_per_token())
    if result.best_checkpoint is not None and result.best_checkpoint != result.last_checkpoint:
        load_model_tensors(loaded.model, result.best_checkpoint)
    loaded.model.eval()
    loaded.save(folder.path / ("adapter" if loaded.adapter is not None else "model"))
    every, trained = loaded.parameter_counts()
    return result, {
        "train_loss": result.train_loss,
        "steps": result.step,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens / result.seconds if result.seconds else 0.0,
        "skipped_steps": result.skipped_steps,
        "parameters": every,
        "trained_parameters": trained,
        "peak_memory_gb": runtime.peak_memory_gb(),
    }


class SelectionLoss:
    """The evaluation during training: the objective on examples that are kept from training.

    Args:
        objective: what is minimised.
        items: the examples.
        collate: makes a batch of them.
        rows: per batch.
        runtime: the machine.
        metrics: names of what is measured.
    """

    def __init__(
        self,
        objective: Objective,
        items: Sequence[Sized],
        collate: Collate,
        rows: int,
        runtime: Runtime,
        metrics: Sequence[str] = ("validation_loss",),
    ) -> None:
        self.objective, self.items, self.collate = objective, items, collate
        self.rows, self.device, self.metrics = rows, runtime.device, metrics

    def __call__(self, model: Any) -> dict[str, float]:
        from modern_llm.evaluation.answering import mean_loss

        measured = mean_loss(model, self.objective, self.items, self.collate, self.rows, self.device)
        return {f"validation_{name}": value for name, value in measured.items()}


def chat_samples(loaded: LoadedModel, runtime: Runtime, samples: Samples, seed: int) -> list[dict[str, str]]:
    """What the model answers to fixed prompts, each the first turn of a conversation."""
    from modern_llm.data.chat import ChatWriter
    from modern_llm.models.generation import continue_ids

    writer, texts = ChatWriter(loaded.tokenizer), []
    for number, prompt in enumerate(samples.prompts):
        with runtime.autocast():
            (answer,) = continue_ids(
                loaded.model,  # type: ignore[arg-type]
                loaded.tokenizer,
                [writer.prompt([{"role": "user", "content": prompt}])],
                max_new_tokens=samples.max_new_tokens,
                sampling=samples.sampling,
                seed=seed + number,
            )
        texts.append({"prompt": prompt, "text": f" → {answer.text.strip()}"})
    return texts


def report(
    task: ReportingTask,
    folder: RunFolder,
    runtime: Runtime,
    metrics: dict[str, float],
    headline: Sequence[str],
    protocol: dict[str, Any],
    checkpoint: Path | None,
    **more: Any,
) -> None:
    """Write result and page, and print the headline with its intervals."""
    from modern_llm.reporting.pages.run import write_run_report

    folder.write_json(
        "result.json",
        {
            "status": "finished",
            "metrics": metrics,
            "objective_metric": task.objective_metric,
            "headline": [name for name in headline if name in metrics],
            "protocol": protocol,
            "evaluated_checkpoint": checkpoint.relative_to(folder.path).as_posix() if checkpoint else None,
            "runtime": runtime.describe(),
            **more,
        },
    )
    written = write_run_report(folder.path)
    for name in headline:
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        bounds = f" (95 % interval {low:.4f} to {high:.4f})" if low is not None and high is not None else ""
        if name in metrics:
            print(f"{name}: {metrics[name]:.4f}{bounds}")
    paths = {"result": folder.path / "result.json"}
    if (folder.path / "errors.jsonl").exists():
        paths["errors"] = folder.path / "errors.jsonl"
    paths |= written
    if checkpoint is not None:
        paths["checkpoint"] = checkpoint
    for what, path in paths.items():
        print(f"{what + ':':<12}{path}")

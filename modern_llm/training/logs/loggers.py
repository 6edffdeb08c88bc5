"""Where metrics go besides `metrics.jsonl`: the choices of `logger`. Each is imported when it is used."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from modern_llm.defaults import Defaults
from modern_llm.locks import alone
from modern_llm.training.callbacks import Callback


class Watcher:
    """Gives callbacks that watch a run."""

    def callbacks(self, folder: Path, record: dict[str, Any]) -> list[Callback]:
        """Callbacks for the run in `folder` with the configuration `record`."""
        return []


class Logger(Watcher):
    """A choice of `logger`: a watcher that forwards metrics.

    Attributes:
        package: that must be installed for it; None: nothing more.
    """

    package: ClassVar[str | None] = None


@dataclass(frozen=True)
class FilesOnly(Logger):
    """`metrics.jsonl` and nothing else."""


@dataclass(frozen=True)
class TensorBoard(Logger):
    """Event files in the run folder; needs `pip install modern-llm[tensorboard]`."""

    package: ClassVar[str | None] = "tensorboard"

    def callbacks(self, folder: Path, record: dict[str, Any]) -> list[Callback]:
        from torch.utils.tensorboard import SummaryWriter

        class Forward(Callback):
            def on_start(self, step: int, max_steps: int | None) -> None:
                self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

            def on_metrics(self, row: dict[str, Any]) -> None:
                for name, value in row.items():
                    if name != "step":
                        self.writer.add_scalar(name, value, row["step"])

            def on_end(self) -> None:
                self.writer.close()

        return [Forward()]


_WAND_B = Defaults("logger/wandb")


@dataclass(frozen=True)
class WandB(Logger):
    """Weights & Biases; needs `pip install modern-llm[wandb]`.

    Args:
        project: its project.
        mode: online, offline (synchronised later with `wandb sync`) or disabled.
    """

    package: ClassVar[str | None] = "wandb"
    project: str = _WAND_B("project")
    mode: Literal["online", "offline", "disabled"] = _WAND_B("mode")

    def callbacks(self, folder: Path, record: dict[str, Any]) -> list[Callback]:
        import wandb

        project, mode = self.project, self.mode

        class Forward(Callback):
            def on_start(self, step: int, max_steps: int | None) -> None:
                # The folder is the identity: a resumed run continues its curve, and two runs never merge.
                identity = folder.resolve().as_posix().strip("/").replace("/", "-")[-64:]
                self.run = wandb.init(
                    project=project, mode=mode, dir=folder, config=record, id=identity, name=folder.name, resume="allow"
                )

            def on_metrics(self, row: dict[str, Any]) -> None:
                self.run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

            def on_end(self) -> None:
                self.run.finish()

        return [Forward()]


_M_LFLOW = Defaults("logger/mlflow")


@dataclass(frozen=True)
class MLflow(Logger):
    """MLflow's local file store; needs `pip install modern-llm[mlflow]`.

    Args:
        folder: of the store.
        experiment: its experiment.
    """

    package: ClassVar[str | None] = "mlflow"
    folder: str = "outputs/mlruns"
    experiment: str = _M_LFLOW("experiment")

    def callbacks(self, folder: Path, record: dict[str, Any]) -> list[Callback]:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for a database unless told otherwise
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        store = Path(self.folder).expanduser().resolve()
        store.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(store.as_uri())
        name, identity = self.experiment, folder / "mlflow_run"

        class Forward(Callback):
            def on_start(self, step: int, max_steps: int | None) -> None:
                self.last: dict[str, int] = {}
                if identity.is_file():  # a resumed run continues its curves
                    self.run = identity.read_text().strip()
                    client.update_run(self.run, status="RUNNING")
                    for metric in client.get_run(self.run).data.metrics:
                        self.last[metric] = max(m.step for m in client.get_metric_history(self.run, metric))
                    return
                with alone(store / "experiments.lock"):  # jobs that start together would each make it
                    found = client.get_experiment_by_name(name)
                    experiment = found.experiment_id if found else client.create_experiment(name)
                self.run = client.create_run(experiment, run_name=folder.name).info.run_id
                settings = [Param(key, str(value)[:500]) for key, value in _settings(record)]
                client.log_batch(self.run, params=settings)
                identity.write_text(self.run)

            def on_metrics(self, row: dict[str, Any]) -> None:
                # Steps that a resumed run does again have the same values, and stand there already.
                step, now = row["step"], int(time.time() * 1000)
                new = {k: v for k, v in row.items() if k != "step" and step > self.last.get(k, -1)}
                client.log_batch(self.run, metrics=[Metric(k, float(v), now, step) for k, v in new.items()])

            def on_end(self) -> None:
                client.set_terminated(self.run)

        return [Forward()]


def _settings(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested configuration."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""Where metrics go besides `metrics.jsonl`: the choices of `logger`. Each is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modern_llm.training.callbacks import Callback


class Logger:
    """A choice of `logger`: gives the callbacks that forward metrics."""

    def callbacks(self, folder: Path, record: dict[str, Any]) -> list[Callback]:
        """Callbacks for the run in `folder` with the configuration `record`."""
        return []


@dataclass(frozen=True)
class FilesOnly(Logger):
    """`metrics.jsonl` and nothing else."""


@dataclass(frozen=True)
class TensorBoard(Logger):
    """Event files in the run folder; needs `pip install modern-llm[tensorboard]`."""

    def callbacks(self, folder: Path, record: dict[str, Any]) -> list[Callback]:
        from torch.utils.tensorboard import SummaryWriter

        class Forward(Callback):
            def on_start(self, step: int, max_steps: int) -> None:
                self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

            def on_metrics(self, row: dict[str, Any]) -> None:
                for name, value in row.items():
                    if name != "step":
                        self.writer.add_scalar(name, value, row["step"])

            def on_end(self) -> None:
                self.writer.close()

        return [Forward()]


@dataclass(frozen=True)
class WandB(Logger):
    """Weights & Biases; needs `pip install modern-llm[wandb]`.

    Args:
        project: its project.
        mode: online, offline (synchronised later with `wandb sync`) or disabled.
    """

    project: str = "modern_llm"
    mode: str = "offline"

    def callbacks(self, folder: Path, record: dict[str, Any]) -> list[Callback]:
        import wandb

        project, mode = self.project, self.mode

        class Forward(Callback):
            def on_start(self, step: int, max_steps: int) -> None:
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

"""Where a run stands: put into a checkpoint, and taken up again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from modern_llm.processes import agreed
from modern_llm.training import random_states
from modern_llm.training.averaged import AveragedWeights
from modern_llm.training.checkpoint import Checkpoints, load_model_tensors, whole_tensors
from modern_llm.training.contract import DataStream
from modern_llm.training.guard import Guard
from modern_llm.training.logs.metrics import MetricsLog
from modern_llm.training.logs.progress import Best, Progress
from modern_llm.training.parallel import shares
from modern_llm.training.parallel.replicated import Replicated


class Restored(NamedTuple):
    """Where a run goes on."""

    checkpoint: Path
    progress: Progress
    best: Best
    evaluated: bool  # whether the checkpoint was


@dataclass
class Saving:
    """All that a run is besides its progress.

    Args:
        checkpoints: where it is kept.
        model, parallel, averaged, scaler, guard, data, metrics_log: of the loop.
        extras: as `save_extras` of the loop.
        whole_gb: size from which each process writes its share.
    """

    checkpoints: Checkpoints
    model: nn.Module
    parallel: Replicated
    averaged: AveragedWeights
    scaler: torch.amp.GradScaler
    guard: Guard
    data: DataStream
    metrics_log: MetricsLog
    extras: Callable[[Path], None]
    whole_gb: float

    def save(self, progress: Progress, best: Best) -> Path:
        """Write a checkpoint. Every process calls it.

        Raises:
            CheckpointError: as in `Checkpoints.save`.
        """
        with self.averaged.in_place():
            state = self._state(progress, best)
            if shares.is_large(self.model, self.whole_gb):
                held = shares.held(self.model, self.parallel, self.averaged)
                return self.checkpoints.save_shares(progress.step, held, state, self.extras)
            weights = whole_tensors(self.model)
            state["optimizer"] = self.parallel.optimizer_state()
            state["averaged"]["weights"] = self.averaged.weights()
            save, folder = self.checkpoints.save, self.checkpoints.folder
            return folder / agreed(lambda: save(progress.step, weights, state, self.extras).name)

    def _state(self, progress: Progress, best: Best) -> dict[str, Any]:
        """What a checkpoint holds besides the model, the state of the optimiser and the weights behind an average."""
        return {
            "progress": vars(progress),
            "best": vars(best),
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.state_dict(),
            "data": self.data.state_dict(),
            "random": random_states.read(),
            "averaged": {"taken": self.averaged.taken},
            "metrics_bytes": self.metrics_log.position(),
        }

    def restore(self) -> Restored | None:
        """Continue from the newest whole checkpoint, where there is one.

        Raises:
            CheckpointError: all of them are torn.
        """
        name = agreed(lambda: getattr(self.checkpoints.last_good(), "name", None))
        if name is None:
            self.metrics_log.rewind(0)
            self.checkpoints.mark_best(None, None)
            return None
        folder = self.checkpoints.folder / name
        state = self.checkpoints.load_state(folder)
        if (folder / shares.FOLDER).is_dir():
            state["optimizer"], state["averaged"]["weights"] = shares.read(folder, self.parallel, self.averaged)
        load_model_tensors(self.model, folder)
        if "averaged" in state:  # not in checkpoints of before
            self.averaged.restore(**state["averaged"])
        self.parallel.load_optimizer_state(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.guard.load_state_dict(state["guard"])
        self.data.load_state_dict(state["data"])
        best = Best(**state["best"])
        self.metrics_log.rewind(state["metrics_bytes"])
        evaluated = self.checkpoints.evaluation(folder)
        if evaluated is not None:
            self.metrics_log.write(evaluated["row"])
            best = Best(**evaluated["best"])
        # The best as it was at that step: a later one belongs to steps that are done again.
        held = best.checkpoint
        self.checkpoints.mark_best(self.checkpoints.folder / held if held else None, best.value)
        random_states.restore(state["random"])
        return Restored(folder, Progress(**state["progress"]), best, evaluated is not None)

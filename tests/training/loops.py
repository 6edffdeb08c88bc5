"""What the tests of the loop share: small models, a loop on the CPU, streams, and evaluations told beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.evaluation.metrics.registry import Direction
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.values.value_embedding import ValueTable
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.callbacks import Callback
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings
from modern_llm.training.trainer import Trainer

# The model whose messages are counted.
SENDING: dict[str, Any] = {"vocab_size": 64, "d_model": 64, "n_layers": 4, "values": {"value_table": ValueTable()},
                           "tie_embeddings": False}  # fmt: skip


def model(seed: int = 0, **changes: Any) -> ModernDecoderLM:
    torch.manual_seed(seed)
    settings = {"vocab_size": 50, "max_seq_len": 32, "d_model": 32, "n_layers": 2, "n_heads": 2}
    return ModernDecoderLM(ModernLLMConfig(**{**settings, **changes}))


def trainer(folder: Path, hardware: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    settings = {"max_steps": 6, "batch_size": 4, "log_every": 1, "eval_every": 100}
    runtime = Runtime(Hardware(**{"device": "cpu", "precision": "fp32", **(hardware or {})}))
    return Trainer(TrainerSettings(**{**settings, **changes}), runtime, folder)


def stream(corpus: TokenCorpus, batch_size: int = 4) -> PackedStream:
    return PackedStream(corpus, 16, batch_size, seed=0)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Ragged(PackedStream):
    """Rows with very different numbers of targets."""

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = super().__next__()
        batch["labels"] = batch["labels"].clone()
        for row, labels in enumerate(batch["labels"]):
            labels[: row % 16] = -100
        return batch


class Evaluations:
    """Values told beforehand, to steer best checkpoint and patience."""

    def __init__(self, values: list[float], metrics: Mapping[str, Direction] | None = None) -> None:
        self.values = iter(values)
        self.metrics = metrics or {"validation_loss": "lower"}

    def __call__(self, model: Any) -> dict[str, float]:
        value = next(self.values)
        return dict.fromkeys(self.metrics, value)


class Cut(Callback):
    """Ends a run at once, a step behind a checkpoint."""

    def on_step(self, step: int, loss: float) -> None:
        if step == 6:
            raise KeyboardInterrupt


def whole_and_resumed(
    folder: Path, make: Callable[[], ModernDecoderLM], corpus: TokenCorpus, hardware: dict[str, Any], optimizer: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights after eight steps, undisturbed and cut off behind the sixth."""

    def trained(place: Path, *watching: Callback) -> list[torch.Tensor]:
        net = make()
        loop = trainer(place, hardware, max_steps=8, optimizer=optimizer, save_every=5)
        loop.callbacks = watching
        loop.fit(net, LanguageModeling(), stream(corpus))
        return [p.detach() for p in net.parameters()]

    whole = trained(folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(folder / "cut", Cut())
    return whole, trained(folder / "cut")

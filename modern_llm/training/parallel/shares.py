"""What each process has of a checkpoint that is too large for one of them to hold."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from modern_llm.processes import world
from modern_llm.training.averaged import AveragedWeights
from modern_llm.training.checkpoint import MODEL_FOLDER, model_tensors
from modern_llm.training.parallel import shard_files
from modern_llm.training.parallel.replicated import Replicated

FOLDER = "trainer"  # in a checkpoint; what is left of the state is small and in the files of any checkpoint
_OPTIMIZER, _AVERAGED = "optimizer", "averaged"


def is_large(model: nn.Module, most_gb: float) -> bool:
    """Whether several processes train what may come to more than so many GB: trained weights with two moments each."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return world().count > 1 and 3 * trained > most_gb * 1e9


def held(model: nn.Module, parallel: Replicated, averaged: AveragedWeights) -> dict[str, dict[str, Tensor]]:
    """What this process has, by name, for each folder of a checkpoint."""
    state = {f"{_OPTIMIZER}.{i}.{name}": tensor
             for i, named in parallel.optimizer_share().items() for name, tensor in named.items()}  # fmt: skip
    state |= {f"{_AVERAGED}.{name}": tensor for name, tensor in averaged.share().items()}
    return {MODEL_FOLDER: model_tensors(model), FOLDER: state}


def read(
    checkpoint: Path, parallel: Replicated, averaged: AveragedWeights
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Tensor]]:
    """What this process needs, whichever processes wrote it: the state of the optimiser by parameter, and the weights
    behind an average by name."""
    optimizer: dict[int, dict[str, Tensor]] = {}
    behind: list[str] = []
    for name, tensor in shard_files.listed(checkpoint / FOLDER).items():
        kind, key = name.split(".", 1)
        if kind == _AVERAGED:
            behind.append(key)
        else:
            i, field = key.split(".", 1)
            optimizer.setdefault(int(i), {})[field] = tensor
    optimizer, weights = parallel.room_for(optimizer), averaged.room_for(behind)
    flat = {f"{_OPTIMIZER}.{i}.{field}": t for i, named in optimizer.items() for field, t in named.items()}
    shard_files.read_into(checkpoint / FOLDER, flat | {f"{_AVERAGED}.{name}": t for name, t in weights.items()})
    return optimizer, weights

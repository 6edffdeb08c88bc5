"""Every process has the whole model and the whole state of the optimiser; so has a single one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modern_llm.processes import world
from modern_llm.training.optimization.muon import MuonWithAdamW
from modern_llm.training.optimization.optimizers import OptimizerSettings
from modern_llm.training.optimization.start import import_compiler_late
from modern_llm.training.parallel.gradients import GradientSums


class Replicated:
    """The model of one process or of several, between which gradients are summed.

    Args:
        model: on its device.
        settings: of the optimiser.

    Attributes:
        optimizer: over what this process updates.
        in_pieces: whether the weights of the model are cut.
    """

    in_pieces = False

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        self.model = model
        import_compiler_late()
        self.optimizer = self.build(settings)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.sums = GradientSums(trained) if world().count > 1 else None

    def build(self, settings: OptimizerSettings) -> Optimizer:
        """The optimiser over all that is trained."""
        optimizer = settings.build(self.model)
        if isinstance(optimizer, MuonWithAdamW):
            optimizer.divides = world().count > 1
        return optimizer

    def before_last_backward(self) -> None:
        """The next backward pass completes the gradients of this process."""
        if self.sums is not None:
            self.sums.begin()

    def complete_gradients(self) -> None:
        """Gradients are those of the whole batch from here on."""
        if self.sums is not None:
            self.sums.finish()

    def clip(self, most: float | None) -> Tensor:
        """Shorten the gradient to `most`, and give the length that it had."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), most or math.inf)

    def after_step(self) -> None:
        """The optimiser of this process has made its step."""

    def rest(self) -> None:
        """Forward passes without a backward pass are over: weights that they gathered may change from here on."""

    def optimizer_state(self) -> dict[int, dict[str, Any]]:
        """State by the number of the parameter in the groups, whole in the first process: what a checkpoint holds."""
        return self.optimizer.state_dict()["state"]

    def optimizer_share(self) -> dict[int, dict[str, Any]]:
        """What this process has of it, pieces as `DTensor`."""
        return self.optimizer_state()

    def room_for(self, listed: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Empty tensors for what this process needs of a state that is told by tensors without content."""
        return {i: {name: torch.empty_like(t, device="cpu") for name, t in of.items()} for i, of in listed.items()}

    def load_optimizer_state(self, state: dict[int, dict[str, Any]]) -> None:
        """Go on from what `optimizer_state` gave, whichever processes gave it.

        Rates, decay and betas come from the configuration, so that an override on resume takes effect.
        """
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class ShardedOptimizer(Replicated):
    """Each process keeps the state of its share of the parameters, updates these and tells the others (Rajbhandari et
    al. 2020, arXiv 1910.02054, stage 1). A parameter is never cut, so that matrices are orthogonalised whole."""

    def build(self, settings: OptimizerSettings) -> Optimizer:
        optimizer = settings.build(self.model)
        self.order: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        costs = [_cost(p, group.get("use_muon", False)) for group in optimizer.param_groups for p in group["params"]]
        self.owner = dict(zip(self.order, _owners(costs, world().count), strict=True))
        for group in optimizer.param_groups:
            mine = [self.owner[p] == world().rank for p in group["params"]]
            for name in ("params", "rows"):
                group[name] = [item for item, is_mine in zip(group[name], mine, strict=True) if is_mine]
        return optimizer

    @torch.no_grad()
    def after_step(self) -> None:
        import torch.distributed as dist

        shares: list[tuple[list[Tensor], Tensor, Any]] = []
        for rank in range(world().count):
            for alike in _by_dtype([p for p in self.order if self.owner[p] == rank]):
                flat = torch.cat([p.detach().reshape(-1) for p in alike])
                shares.append((alike, flat, dist.broadcast(flat, rank, async_op=True)))
        for alike, flat, work in shares:
            work.wait()
            for p, piece in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
                if self.owner[p] != world().rank:
                    p.copy_(piece.view_as(p))

    def optimizer_state(self) -> dict[int, dict[str, Any]]:
        """One parameter after the other, so that no process but the first ever holds more than its share."""
        import torch.distributed as dist

        state: dict[int, dict[str, Any]] = {}
        shapes: list[Any] = [None] * world().count
        mine = self.optimizer_share()
        told = {i: {name: (tuple(t.shape), t.dtype) for name, t in of.items()} for i, of in mine.items()}
        dist.all_gather_object(shapes, told)
        for rank, found in enumerate(shapes):
            for i, named in sorted(found.items()):
                for name, (shape, dtype) in named.items():
                    if rank == world().rank == 0:
                        state.setdefault(i, {})[name] = mine[i][name]
                    elif rank == world().rank:
                        dist.send(mine[i][name].to(self.order[i].device).contiguous(), 0)
                    elif world().rank == 0:
                        held = torch.empty(shape, dtype=dtype, device=self.order[i].device)
                        dist.recv(held, rank)
                        state.setdefault(i, {})[name] = held.cpu()
        return state

    def optimizer_share(self) -> dict[int, dict[str, Any]]:
        return {i: self.optimizer.state[p] for i, p in enumerate(self.order) if self.optimizer.state.get(p)}

    def room_for(self, listed: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        return super().room_for({i: of for i, of in listed.items() if self.owner[self.order[i]] == world().rank})

    def load_optimizer_state(self, state: dict[int, dict[str, Any]]) -> None:
        mine = [i for i, p in enumerate(self.order) if self.owner[p] == world().rank]
        super().load_optimizer_state({place: state[i] for place, i in enumerate(mine) if i in state})


def _cost(p: Tensor, is_orthogonalised: bool) -> float:
    """What an update of a parameter takes, about: products for a matrix, numbers moved for the rest."""
    if is_orthogonalised:
        return float(15 * p.numel() * min(p.shape[-2:]))
    return float(10 * p.numel())


def _owners(costs: list[float], count: int) -> list[int]:
    """A process for each parameter, the costliest first to whom has least (Graham 1969)."""
    loads, owners = [0.0] * count, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def _by_dtype(parameters: list[Tensor]) -> list[list[Tensor]]:
    alike: dict[torch.dtype, list[Tensor]] = {}
    for p in parameters:
        alike.setdefault(p.dtype, []).append(p)
    return list(alike.values())

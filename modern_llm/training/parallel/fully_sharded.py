"""Weights, gradients and the state of the optimiser in pieces, gathered block by block while they are needed."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modern_llm.processes import summed, world
from modern_llm.training.optimization.muon import MuonWithAdamW
from modern_llm.training.optimization.optimizers import OptimizerSettings
from modern_llm.training.parallel.gradients import GradientSums
from modern_llm.training.parallel.replicated import Replicated
from modern_llm.training.parallel.shards import cut, is_cut, laid, piece_of, whole

_PASSES = ("hidden_states", "logits", "encode", "decoder_states")  # what objectives call besides forward


class FullySharded(Replicated):
    """Torch's `fully_shard` around each block and around the rest (Zhao et al. 2023, arXiv 2304.11277; Rajbhandari et
    al. 2020, arXiv 1910.02054, stage 3). The optimiser sees plain tensors, the pieces; matrices are gathered to be
    orthogonalised. Scalars, which cannot be cut, are in every process."""

    in_pieces = True

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        # Blocks hand on views of what they read, and nobody writes into these.
        warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
        scalars = {p for p in model.parameters() if p.dim() == 0}
        mesh = init_device_mesh(next(model.parameters()).device.type, (world().count,))
        for part in (*getattr(model, "blocks", []), model):
            fully_shard(part, mesh=mesh, ignored_params=scalars)
        for name in _PASSES:
            if hasattr(model, name):
                register_fsdp_forward_method(model, name)
        self.model, self.wrapped = model, [m for m in model.modules() if isinstance(m, FSDPModule)]
        for module in self.wrapped:
            module.set_gradient_divide_factor(1.0)  # gradients are sums
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            module.set_requires_gradient_sync(False)
        self.sums: GradientSums | None = None
        trained = [p for p in model.parameters() if p in scalars and p.requires_grad]
        if trained:
            self.sums = GradientSums(trained)
        self.optimizer = self.build(settings)

    def build(self, settings: OptimizerSettings) -> Optimizer:
        optimizer = settings.build(self.model)
        self.order: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.piece: dict[Tensor, nn.Parameter] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                self.piece[p] = nn.Parameter(piece_of(p).detach()) if is_cut(p) else p
            group["params"] = [self.piece[p] for p in group["params"]]
        if isinstance(optimizer, MuonWithAdamW):
            optimizer.divides = True
            optimizer.lies_as = {piece: p for p, piece in self.piece.items()}
        return optimizer

    def before_last_backward(self) -> None:
        super().before_last_backward()
        for module in self.wrapped:
            module.set_requires_gradient_sync(True)

    def complete_gradients(self) -> None:
        super().complete_gradients()
        for p, piece in self.piece.items():
            if piece is not p:
                piece.grad = None if p.grad is None else piece_of(p.grad)
        for module in self.wrapped:
            module.set_requires_gradient_sync(False)

    @torch.no_grad()
    def clip(self, most: float | None) -> Tensor:
        pieces = [piece.grad for p, piece in self.piece.items() if piece is not p and piece.grad is not None]
        scalars = [piece.grad for p, piece in self.piece.items() if piece is p and piece.grad is not None]
        squares = summed(torch.stack(torch._foreach_norm(pieces)).square().sum())
        if scalars:
            squares = squares + torch.stack(torch._foreach_norm(scalars)).square().sum()
        norm = squares.sqrt()
        torch._foreach_mul_([*pieces, *scalars], ((most or math.inf) / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def after_step(self) -> None:
        for p, piece in self.piece.items():
            if piece is not p:
                piece.grad = None

    def rest(self) -> None:
        for module in self.wrapped:
            module.reshard()

    def optimizer_state(self) -> dict[int, dict[str, Any]]:
        state: dict[int, dict[str, Any]] = {}
        for i, named in self.optimizer_share().items():
            for name, value in named.items():
                full = whole(value)
                if world().is_first:
                    state.setdefault(i, {})[name] = full.cpu() if full is not value else value
        return state

    def optimizer_share(self) -> dict[int, dict[str, Any]]:
        held = ((i, p, self.piece[p]) for i, p in enumerate(self.order))
        return {
            i: {name: laid(value, p) if value.shape == piece.shape else value
                for name, value in self.optimizer.state.get(piece, {}).items()}
            for i, p, piece in held
        }  # fmt: skip

    def room_for(self, listed: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        room = super().room_for(listed)
        for i, named in listed.items():
            p = self.order[i]
            room[i] |= {name: laid(torch.empty_like(piece_of(p), dtype=tensor.dtype), p)
                        for name, tensor in named.items() if tensor.shape == p.shape}  # fmt: skip
        return room

    def load_optimizer_state(self, state: dict[int, dict[str, Any]]) -> None:
        mine = {
            i: {name: cut(value, self.order[i]) if value.shape == self.order[i].shape else value
                for name, value in named.items()}
            for i, named in state.items()
        }  # fmt: skip
        super().load_optimizer_state(mine)

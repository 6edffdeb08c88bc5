"""Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modern_llm.training.optimization.optimizers import OptimizerSettings

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Lion(OptimizerSettings):
    """The sign of a mean of gradient and momentum.

    Args:
        lr, weight_decay, weight_decay_schedule, rates: as in `OptimizerSettings`.
        beta1: share of the momentum in the step.
        beta2: decay of the momentum.
    """

    shards = True

    beta1: float = 0.9
    beta2: float = 0.99

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        class Signs(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: None = None) -> None:
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is None:
                            continue
                        if not self.state[p]:
                            self.state[p]["momentum"] = torch.zeros_like(p)
                        momentum = self.state[p]["momentum"]
                        step = momentum.lerp(p.grad, 1 - group["beta1"]).sign_()
                        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])
                        momentum.lerp_(p.grad, 1 - group["beta2"])

        return Signs(self.groups(model), {"lr": self.lr, "beta1": self.beta1, "beta2": self.beta2})

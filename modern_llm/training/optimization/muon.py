"""Muon: momentum, orthogonalised by Newton-Schulz iterations (Jordan et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic of Jordan et al., steepest at 0


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """About U V^T of each matrix U S V^T, singular values in roughly [0.7, 1.2].

    Args:
        matrices: (..., m, n).
        steps: iterations.
    """
    # 16-bit products are the fast ones on a GPU and often the slow ones on a CPU; the iteration tolerates both.
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class MuonWithAdamW(Optimizer):
    """Muon for the groups with `use_muon`, AdamW for the others.

    Args:
        groups: parameter groups, each with `use_muon`.
        lr, momentum, newton_schulz_steps, betas, eps: as in `optimizers.Muon`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        newton_schulz_steps: int,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "newton_schulz_steps": newton_schulz_steps,
            "betas": betas,
            "eps": eps,
            "weight_decay": 0.0,
            "use_muon": False,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["use_muon"] else self._adamw)(group, parameters)

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for p in parameters:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        for shape, same in by_shape.items():  # equal shapes are orthogonalised in one batch of products
            updates = []
            for p in same:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(state["momentum"], group["momentum"]))  # type: ignore[union-attr]
            directions = orthogonalise(torch.stack(updates), group["newton_schulz_steps"])
            size = 0.2 * max(shape[-2:]) ** 0.5  # root mean square of an AdamW update (Liu et al. 2025, eq. 4)
            for p, direction in zip(same, directions, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * size)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            count = state["step"].item()
            state["exp_avg"].lerp_(p.grad, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - beta1**count))

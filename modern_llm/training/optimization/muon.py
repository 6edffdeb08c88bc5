"""Muon: momentum, orthogonalised by a matrix polynomial (Jordan et al. 2024), and AdamW for what is no matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from modern_llm.models.kernels import device_of
from modern_llm.processes import world
from modern_llm.training.optimization.narrow import in_fp32, put_back
from modern_llm.training.optimization.running_means import EightBitMeans, RunningMeans
from modern_llm.training.parallel.shards import cut, joined

# x <- a x + b x^3 + c x^5 on the singular values, one row a step; the last row is used for all further steps.
_POLYNOMIALS = {
    # Steepest at 0; the values end in [0.7, 1.2] (Jordan et al. 2024).
    "quintic": ((3.4445, -4.7750, 2.0315),),
    # The best polynomial for what the steps before leave of [0.001, 1] (Polar Express, Amsel et al. 2025, arXiv
    # 2505.16932, algorithm 1).
    "polar_express": (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
}
# By how much singular values may come out too large. The largest, in rounding too, must stay where the polynomial of
# the next step holds them back: beyond, it blows them up.
_ROOM = {"quintic": 1.0, "polar_express": 1.01}


def orthogonalise(matrices: Tensor, steps: int, polynomial: str = "quintic", half: bool = False) -> Tensor:
    """About U V^T of each matrix U S V^T.

    Args:
        matrices: (..., m, n).
        steps: iterations.
        polynomial: quintic, or polar_express.
        half: products of fp32 matrices are 16-bit, which the iteration tolerates; on a GPU they always are.
    """
    exact = torch.promote_types(matrices.dtype, torch.float32)
    half = (half or device_of(matrices).type == "cuda") and exact == torch.float32
    x = matrices.reshape(-1, *matrices.shape[-2:]).to(torch.bfloat16 if half else exact)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * _ROOM[polynomial]).clamp(min=1e-7)
    coefficients, room = _POLYNOMIALS[polynomial], _ROOM[polynomial]
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        if step < len(coefficients) - 1:
            a, b, c = a / room, b / room**3, c / room**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


class MuonWithAdamW(Optimizer):
    """Muon for the groups with `use_muon`, AdamW for the others.

    Args:
        groups: parameter groups, each with `use_muon`; those with it have `rows`, of each parameter the rows of the
            maps that it stacks, which are orthogonalised one by one.
        lr, momentum, newton_schulz_steps, polynomial, update_scale, variance_decay, cautious_decay, betas, eps: as in
            `optimizers.Muon`.
        means: how running means are kept; None: in fp32.

    Parameters may lie in bf16: their updates are computed in fp32 and rounded at random.

    Attributes:
        divides: several processes make the same step, and each orthogonalises its share of the matrices.
        lies_as: where parameters are pieces, which tensor each is a piece of.
        half: products are 16-bit, as those of the model.
    """

    divides = half = False

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        newton_schulz_steps: int = 5,
        polynomial: str = "quintic",
        update_scale: str = "rms",
        variance_decay: float | None = None,
        cautious_decay: bool = False,
        means: RunningMeans | None = None,
    ) -> None:
        self.means = means or RunningMeans()
        self.lies_as: dict[Tensor, Tensor] = {}
        self.newton_schulz_steps, self.polynomial = newton_schulz_steps, polynomial
        self.update_scale, self.variance_decay, self.cautious_decay = update_scale, variance_decay, cautious_decay
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0, "use_muon": False}
        defaults["fused"] = True  # by which torch loads the count of steps onto the device
        super().__init__(groups, defaults)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Torch's name for heeding `found_inf`: not where states or weights lie in fewer bits, which are written anew
        in every step."""
        every = [p for group in self.param_groups for p in group["params"]]
        return not isinstance(self.means, EightBitMeans) and all(p.dtype != torch.bfloat16 for p in every)

    @property
    def _bad(self) -> Tensor | None:
        """Scalar, 1 where the step is to change nothing; None: it is known to be good."""
        return getattr(self, "found_inf", None)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["use_muon"]:
                self._muon(group)
            else:
                self._adamw(group)

    def _muon(self, group: dict[str, Any]) -> None:
        trained = [(p, rows) for p, rows in zip(group["params"], group["rows"], strict=True) if p.grad is not None]
        parts: dict[Any, list[tuple[Tensor, tuple[int, ...]]]] = {}
        for p, rows in trained:  # one shape at a time, whose updates alone are held
            parts.setdefault((p.shape, p.dtype), []).append((p, rows))
        for part in parts.values():
            self._muon_of(part, group)

    def _muon_of(self, trained: list[tuple[Tensor, tuple[int, ...]]], group: dict[str, Any]) -> None:
        parameters = [p for p, _ in trained]
        layouts = [self.lies_as.get(p, p) for p in parameters]
        for p, layout in zip(parameters, layouts, strict=True):
            state = self.state[p]
            if not state:
                self.means.begin(state, "momentum", p)
                if self.variance_decay is not None:
                    wide = torch.promote_types(p.dtype, torch.float32)
                    state["variance"] = p.new_zeros(*layout.shape[:-1], 1, dtype=wide)
        gradients = in_fp32([p.grad for p in parameters if p.grad is not None])
        bad = self._bad
        momenta = [self.means.read(self.state[p], "momentum") for p in parameters]
        if bad is not None:  # towards itself, a mean does not move
            for momentum, gradient in zip(momenta, gradients, strict=True):
                torch.where(bad > 0, momentum, gradient, out=gradient)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        for p, momentum in zip(parameters, momenta, strict=True):
            self.means.write(self.state[p], "momentum", momentum)
        del momenta, gradients
        whole = [joined(update, layout) for update, layout in zip(updates, layouts, strict=True)]
        steps = self._steps(whole, [rows for _, rows in trained], [self.state[p].get("variance") for p in parameters])
        steps = [cut(step, layout) for step, layout in zip(steps, layouts, strict=True)]
        taken: float | Tensor = 1.0 if bad is None else 1 - bad
        torch._foreach_mul_(steps, group["lr"] * taken)
        decay, weights = group["lr"] * group["weight_decay"], in_fp32(parameters)
        if decay and self.cautious_decay:
            for weight, step in zip(weights, steps, strict=True):
                step += weight * (weight * step > 0) * decay
        elif decay:
            torch._foreach_mul_(weights, 1 - decay * taken)
        torch._foreach_sub_(weights, steps)
        put_back(parameters, weights)

    def _steps(
        self, updates: list[Tensor], rows: list[tuple[int, ...]], variances: list[Tensor | None]
    ) -> list[Tensor]:
        """What each parameter moves by at a rate of 1. Maps of one shape are orthogonalised in one batch of products,
        those that a parameter stacks one by one.

        Args:
            updates: (..., m, n) of each.
            rows: of the maps that each stacks.
            variances: (..., m, 1) running mean square of the rows of each, which are brought forward; or None.
        """
        maps = [update.split(heights, dim=-2) for update, heights in zip(updates, rows, strict=True)]
        by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for i, stacked in enumerate(maps):
            for k, one in enumerate(stacked):
                by_shape.setdefault(tuple(one.shape), []).append((i, k))
        found = [list(stacked) for stacked in maps]
        for shape, places in by_shape.items():
            steps = self._orthogonalised(torch.stack([maps[i][k] for i, k in places]))
            if self.variance_decay is not None:
                squares = [variances[i].split(rows[i], dim=-2)[k] for i, k in places]  # type: ignore[union-attr]
                steps = self._equal_rows(steps, squares)
            for (i, k), step in zip(places, steps * self._size(shape), strict=True):
                found[i][k] = step
        return [steps[0] if len(steps) == 1 else torch.cat(steps, dim=-2) for steps in found]

    def _orthogonalised(self, updates: Tensor) -> Tensor:
        """Updates (k, ..., m, n) orthogonalised, here or by all processes together."""
        if not self.divides:
            return orthogonalise(updates, self.newton_schulz_steps, self.polynomial, self.half)
        import torch.distributed as dist

        most = -(-len(updates) // world().count)
        share = updates[world().rank * most : (world().rank + 1) * most]
        mine = updates.new_zeros(most, *updates.shape[1:])
        if len(share):
            mine[: len(share)] = orthogonalise(share, self.newton_schulz_steps, self.polynomial, self.half)
        found = [torch.empty_like(mine) for _ in range(world().count)]
        dist.all_gather(found, mine)
        return torch.cat(found)[: len(updates)]

    def _size(self, shape: tuple[int, ...]) -> float:
        """What an orthogonal matrix is multiplied by."""
        outputs, inputs = shape[-2:]
        if self.update_scale == "spectral":
            return max(outputs / inputs, 1.0) ** 0.5
        return 0.2 * max(outputs, inputs) ** 0.5

    def _equal_rows(self, steps: Tensor, variances: list[Tensor]) -> Tensor:
        """Steps (k, ..., m, n) whose rows are divided by the root of their running mean square, each matrix as large
        as before (Li et al. 2025, arXiv 2510.05491, algorithm 1)."""
        assert self.variance_decay is not None
        squares = steps.square().mean(-1, keepdim=True)
        if self._bad is not None:
            squares = torch.where(self._bad > 0, torch.stack(variances), squares)
        torch._foreach_lerp_(variances, list(squares.unbind()), 1 - self.variance_decay)
        size = steps.norm(dim=(-2, -1), keepdim=True)
        steps = steps / torch.stack(variances).sqrt().clamp(min=1e-10)
        return steps * (size / steps.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-10))

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                for name in ("exp_avg", "exp_avg_sq"):
                    self.means.begin(self.state[p], name, p)
        # What is kept in fewer bits is spread out for one parameter at a time.
        single = isinstance(self.means, EightBitMeans)
        whole = [p for p in parameters if not single and p.dtype != torch.bfloat16]
        alone = [[p] for p in parameters if single or p.dtype == torch.bfloat16]
        for part in [whole, *alone] if whole else alone:
            self._adamw_of(part, group)

    def _adamw_of(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        weights = in_fp32(parameters)
        means, squares = ([self.means.read(state, name) for state in states] for name in ("exp_avg", "exp_avg_sq"))
        adamw(
            weights,
            in_fp32([p.grad for p in parameters if p.grad is not None]),
            means,
            squares,
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            found_inf=self._bad,
        )
        for state, mean, square in zip(states, means, squares, strict=True):
            self.means.write(state, "exp_avg", mean)
            self.means.write(state, "exp_avg_sq", square)
        put_back(parameters, weights)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but for the types of what is kept, which torch would make those of the parameters."""
        super().load_state_dict({**state_dict, "state": {}})
        every = [p for group in self.param_groups for p in group["params"]]
        for i, kept in state_dict["state"].items():
            self.state[every[i]] = {name: value.to(every[i].device) for name, value in kept.items()}

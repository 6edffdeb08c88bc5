"""The optimisers that `trainer/optimizer` chooses among. Settings are checked here; torch is imported when built."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import EMBEDDINGS, GATES, HEADS, KINDS, MATRICES, SCALARS, VECTORS
from modern_llm.training.optimization.rates import Rates

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from modern_llm.training.optimization.parameters import Kind
    from modern_llm.training.optimization.running_means import RunningMeans


_ADAM_W = Defaults("trainer/optimizer/adamw")


@dataclass(frozen=True)
class OptimizerSettings(ABC):
    """What all optimisers share.

    Args:
        lr: peak learning rate.
        weight_decay: share of a parameter that is taken off in each step, divided by the learning rate.
        weight_decay_schedule: how it goes over the run: constant, or linear or as half a cosine down to 0.
        rates: rate and decay of each kind of parameter.

    """

    lr: float = 1e-3
    weight_decay: float = _ADAM_W("weight_decay")
    weight_decay_schedule: Literal["constant", "linear", "cosine"] = _ADAM_W("weight_decay_schedule")
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        require(self.lr > 0, "trainer.optimizer.lr", self.lr, "must be above 0", "Use 1e-3 for a small model")
        require(self.weight_decay >= 0, "trainer.optimizer.weight_decay", self.weight_decay, "must not be negative",
                "Use 0 for none")  # fmt: skip

    @property
    def shards(self) -> bool:
        """Whether its state can be divided among processes (`hardware.sharding`): what becomes of a number may depend
        on that number alone."""
        return False

    @abstractmethod
    def build(self, model: nn.Module) -> Optimizer:
        """The optimiser over a model's trained parameters, whose groups `groups` gives.

        Raises:
            ValueError: one of them is 16-bit, and the optimiser cannot round it at random.
        """

    def adjust(self, optimizer: Optimizer, factor: float, progress: float) -> None:
        """Set what changes over a run.

        Args:
            optimizer: that `build` made.
            factor: on every learning rate, from the schedule.
            progress: share of the run's steps that are done, in [0, 1].
        """
        decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            group["weight_decay"] = group["peak_decay"] * decay[self.weight_decay_schedule]

    def groups(self, model: nn.Module, order: tuple[str, ...] = KINDS, rounds: bool = False) -> list[dict[str, Any]]:
        """One group a kind, and one a width where the rate depends on it. States are saved in this order. `rounds`:
        the optimiser takes weights in bf16, as `MuonWithAdamW` does."""
        from modern_llm.training.optimization.parameters import trained_parameters

        found = trained_parameters(model, rounds)
        groups = []
        for kind in order:
            for factor, part in _by_factor(kind, found[kind], self.rates.head_width):
                rate = self.lr * self.rates.of(kind) * factor
                # The kernels shrink by rate * decay, and the shrinkage is not to depend on the rate of the kind.
                decay = self.weight_decay * self.rates.decay_of(kind) * self.lr / rate
                groups.append(
                    {
                        "params": part.tensors,
                        "rows": part.rows,
                        "kind": kind,
                        "lr": rate,
                        "peak_lr": rate,
                        "weight_decay": decay,
                        "peak_decay": decay,
                    }
                )
        return groups


@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), torch's fused kernel.

    Args:
        lr, weight_decay, weight_decay_schedule, rates: as in `OptimizerSettings`.
        betas: decay of the running mean and of the running square.
        eps: added to the root of the running square.
        state_bits: of a running mean: 32, or 8 (Dettmers et al. 2022, arXiv 2110.02861), a quarter of the memory.
    """

    betas: tuple[float, float] = _ADAM_W("betas")
    eps: float = _ADAM_W("eps")
    state_bits: Literal[8, 32] = _ADAM_W("state_bits")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "trainer.optimizer.betas", self.betas,
                "must be two numbers in [0, 1)", "Use [0.9, 0.95]")  # fmt: skip
        require(self.eps > 0, "trainer.optimizer.eps", self.eps, "must be above 0", "Use 1e-8")

    @property
    def shards(self) -> bool:
        return self.state_bits == 32  # fewer have a scale in common

    @property
    def means(self) -> RunningMeans:
        """How running means are kept."""
        from modern_llm.training.optimization.running_means import EightBitMeans, RunningMeans

        return EightBitMeans() if self.state_bits == 8 else RunningMeans()

    def build(self, model: nn.Module) -> Optimizer:
        from modern_llm.training.optimization.muon import MuonWithAdamW

        return MuonWithAdamW(self.groups(model, rounds=True), lr=self.lr, momentum=0.0, betas=self.betas, eps=self.eps,
                             means=self.means)  # fmt: skip


def _by_factor(kind: str, found: Kind, head_width: int | None) -> list[tuple[float, Kind]]:
    """Parameters of one kind, by the factor on their rate that their width asks for."""
    from modern_llm.training.optimization.parameters import Kind

    parts: dict[float, Kind] = {}
    for tensor, rows in zip(found.tensors, found.rows, strict=True):
        factor = head_width / tensor.shape[-1] if kind == HEADS and head_width is not None else 1.0
        part = parts.setdefault(factor, Kind())
        part.tensors.append(tensor)
        part.rows.append(rows)
    return list(parts.items())


_MUON = Defaults("trainer/optimizer/muon")


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) on the linear maps and experts inside the blocks, AdamW on all else: embeddings, heads,
    gates, vectors and scalars. Maps that are stored as one, such as queries, keys and values, are orthogonalised one by
    one.

    Args:
        momentum: of the running gradient.
        momentum_start: momentum of the first step, from which it rises to `momentum`; null: no warm-up (Jordan et al.
            2024).
        momentum_end: momentum of the last step, to which it falls; null: no cool-down.
        momentum_warmup: share of the run in which it rises.
        momentum_cooldown: share of the run in which it falls.
        newton_schulz_steps: iterations of the orthogonalisation.
        polynomial: what is iterated: quintic (Jordan et al. 2024), or polar_express (Amsel et al. 2025, arXiv
            2505.16932).
        update_scale: size of an update: rms, that of AdamW, whatever the shape (Liu et al. 2025, arXiv 2502.16982, eq.
            4), so that one rate serves both; or spectral, sqrt(max(outputs / inputs, 1)), which moves what a map gives
            equally far at every width (Jordan et al. 2024; Yang et al. 2023, arXiv 2310.17813, eq. 5).
        variance_decay: of the running mean square of each row, by which it is divided (NorMuon, Li et al. 2025, arXiv
            2510.05491); null: none.
        cautious_decay: decay where it points the way of the update alone (Chen et al. 2025, arXiv 2510.12402).
    """

    momentum: float = _MUON("momentum")
    momentum_start: float | None = _MUON("momentum_start")
    momentum_end: float | None = _MUON("momentum_end")
    momentum_warmup: float = _MUON("momentum_warmup")
    momentum_cooldown: float = _MUON("momentum_cooldown")
    newton_schulz_steps: int = _MUON("newton_schulz_steps")
    polynomial: Literal["quintic", "polar_express"] = _MUON("polynomial")
    update_scale: Literal["rms", "spectral"] = _MUON("update_scale")
    variance_decay: float | None = _MUON("variance_decay")
    cautious_decay: bool = _MUON("cautious_decay")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("momentum", "momentum_start", "momentum_end", "variance_decay"):
            value = getattr(self, key)
            require(value is None or 0 <= value < 1, f"trainer.optimizer.{key}", value, "must lie in [0, 1)",
                    "Use 0.95" if key == "momentum" else "Use null for none")  # fmt: skip
        for key in ("momentum_warmup", "momentum_cooldown"):
            value = getattr(self, key)
            require(0 < value <= 1, f"trainer.optimizer.{key}", value, "must lie in (0, 1]",
                    f"Use {key.replace('warmup', 'start').replace('cooldown', 'end')}=null for none")  # fmt: skip
        require(self.newton_schulz_steps >= 1, "trainer.optimizer.newton_schulz_steps", self.newton_schulz_steps,
                "must be at least 1", "Use 5")  # fmt: skip

    def build(self, model: nn.Module) -> Optimizer:
        from modern_llm.training.optimization.muon import MuonWithAdamW

        groups = self.groups(model, (EMBEDDINGS, HEADS, GATES, VECTORS, SCALARS, MATRICES), rounds=True)
        return MuonWithAdamW(
            [{**group, "use_muon": group["kind"] == MATRICES} for group in groups],
            lr=self.lr,
            momentum=self.momentum,
            betas=self.betas,
            eps=self.eps,
            newton_schulz_steps=self.newton_schulz_steps,
            polynomial=self.polynomial,
            update_scale=self.update_scale,
            variance_decay=self.variance_decay,
            cautious_decay=self.cautious_decay,
            means=self.means,
        )

    def adjust(self, optimizer: Optimizer, factor: float, progress: float) -> None:
        super().adjust(optimizer, factor, progress)
        for group in optimizer.param_groups:
            group["momentum"] = self.momentum_at(progress)

    def momentum_at(self, progress: float) -> float:
        """Momentum where `progress` of the steps are done."""
        rise, fall = progress / self.momentum_warmup, (1 - progress) / self.momentum_cooldown
        now = self.momentum
        if self.momentum_start is not None and rise < 1:
            now = self.momentum_start + (self.momentum - self.momentum_start) * rise
        if self.momentum_end is not None and fall < 1:
            now = min(now, self.momentum_end + (self.momentum - self.momentum_end) * fall)
        return now

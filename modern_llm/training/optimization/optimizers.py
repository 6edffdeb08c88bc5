"""The optimisers that `trainer/optimizer` chooses among. Settings are checked here; torch is imported when built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


_ADAM_W = Defaults("trainer/optimizer/adamw")


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), torch's fused kernel.

    Args:
        lr: peak learning rate.
        weight_decay: on matrices and embeddings; vectors (norms, biases, sinks) are not decayed.
        betas: decay of the running mean and of the running square.
        eps: added to the root of the running square.
    """

    lr: float = 1e-3
    weight_decay: float = _ADAM_W("weight_decay")
    betas: tuple[float, float] = _ADAM_W("betas")
    eps: float = _ADAM_W("eps")

    def __post_init__(self) -> None:
        require(self.lr > 0, "trainer.optimizer.lr", self.lr, "must be above 0", "Use 1e-3 for a small model")
        require(self.weight_decay >= 0, "trainer.optimizer.weight_decay", self.weight_decay, "must not be negative",
                "Use 0 for none")  # fmt: skip
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "trainer.optimizer.betas", self.betas,
                "must be two numbers in [0, 1)", "Use [0.9, 0.95]")  # fmt: skip
        require(self.eps > 0, "trainer.optimizer.eps", self.eps, "must be above 0", "Use 1e-8")

    @property
    def state_bytes_per_parameter(self) -> int:
        """Bytes of state per trained parameter, for the memory plan."""
        return 8

    def build(self, model: nn.Module) -> Optimizer:
        """The optimiser over a model's trained parameters.

        Raises:
            ValueError: one of them is 16-bit.
        """
        import torch

        from modern_llm.training.optimization.parameters import trained_parameters

        kinds = trained_parameters(model)
        groups = self._groups(decayed=[*kinds.matrices, *kinds.tables], plain=kinds.vectors)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

    def _groups(self, decayed: list[Tensor], plain: list[Tensor]) -> list[dict[str, Any]]:
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]


_MUON = Defaults("trainer/optimizer/muon")


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024) on the linear maps and experts inside the blocks, AdamW on all else: embeddings, heads
    and vectors. Updates are scaled
    to AdamW's size (Liu et al. 2025, arXiv 2502.16982, eq. 4), so both share one learning rate.

    Args:
        momentum: of the running gradient.
        newton_schulz_steps: iterations of the orthogonalisation.
    """

    momentum: float = _MUON("momentum")
    newton_schulz_steps: int = _MUON("newton_schulz_steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "trainer.optimizer.momentum", self.momentum, "must lie in [0, 1)", "Use 0.95")
        require(self.newton_schulz_steps >= 1, "trainer.optimizer.newton_schulz_steps", self.newton_schulz_steps,
                "must be at least 1", "Use 5")  # fmt: skip

    def build(self, model: nn.Module) -> Optimizer:
        from modern_llm.training.optimization.muon import MuonWithAdamW
        from modern_llm.training.optimization.parameters import trained_parameters

        kinds = trained_parameters(model)
        groups = [{**group, "use_muon": False} for group in self._groups(kinds.tables, kinds.vectors)]
        if kinds.matrices:
            groups.append({"params": kinds.matrices, "weight_decay": self.weight_decay, "use_muon": True})
        return MuonWithAdamW(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            newton_schulz_steps=self.newton_schulz_steps,
            betas=self.betas,
            eps=self.eps,
        )

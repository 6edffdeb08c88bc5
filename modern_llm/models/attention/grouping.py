"""How query heads share keys and values: the choices of `model/gqa`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.checks import require
from modern_llm.defaults import Defaults

_GQA = Defaults("model/gqa/mha")


@dataclass(frozen=True)
class GQAConfig:
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        group_size: query heads that share one key/value head; 1 is multi-head attention, `n_heads` is
            multi-query attention (Shazeer 2019, arXiv 1911.02150).
    """

    group_size: int = _GQA("group_size")

    def __post_init__(self) -> None:
        require(
            self.group_size >= 1, "model.gqa.group_size", self.group_size, "must be at least 1", "Use model/gqa=mha"
        )

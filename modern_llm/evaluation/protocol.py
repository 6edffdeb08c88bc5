"""How a perplexity is measured. Settings alone; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.checks import require
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/pretraining", "evaluation")


@dataclass(frozen=True)
class PerplexityProtocol:
    """A strided window over the whole split: every token is scored once, with at least `context - stride` tokens of
    context where the text has them.

    Args:
        context: tokens that the model sees at most; null: the length it was trained on.
        stride: tokens between windows; null: as context, windows side by side.
        tokens_in_training: tokens of the validation split that the evaluations during training score.
    """

    context: int | None = _DEFAULTS("context")
    stride: int | None = _DEFAULTS("stride")
    tokens_in_training: int = _DEFAULTS("tokens_in_training")

    def __post_init__(self) -> None:
        for key in ("context", "stride"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.evaluation.{key}", value, "must be at least 1", "Use null")
        require(self.context is None or self.stride is None or self.stride <= self.context, "task.evaluation.stride",
                self.stride, f"must not exceed task.evaluation.context={self.context}",
                "A longer stride would skip tokens; lower it")  # fmt: skip
        require(self.tokens_in_training >= 1, "task.evaluation.tokens_in_training", self.tokens_in_training,
                "must be at least 1", "Use 65536")  # fmt: skip

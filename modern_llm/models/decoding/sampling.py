"""How the next token is chosen. Settings alone; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.checks import require
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/sampling/plain")


@dataclass(frozen=True)
class Sampling:
    """Filters are applied in the order of the fields, then one token is drawn.

    Args:
        repetition_penalty: divides the positive and multiplies the negative logits of tokens that have occurred
            (Keskar et al. 2019, arXiv 1909.05858); 1 is none.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep the k most likely tokens; null: all.
        top_p: keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2019, arXiv
            1904.09751); 1 keeps all.
        min_p: drop tokens less likely than p times the most likely one (Nguyen et al. 2024, arXiv 2407.01082); 0
            keeps all.
        lookup: a text that is written alone tries up to so many tokens a step that stood behind an earlier place like
            its end; the text stays the same (`decoding/lookup.py`). 0: one token a step.
        compile: run the steps of decoders of ours as one compiled graph (`decoding/compiled.py`).
    """

    repetition_penalty: float = _DEFAULTS("repetition_penalty")
    temperature: float = _DEFAULTS("temperature")
    top_k: int | None = _DEFAULTS("top_k")
    top_p: float = _DEFAULTS("top_p")
    min_p: float = _DEFAULTS("min_p")
    lookup: int = _DEFAULTS("lookup")
    compile: bool = _DEFAULTS("compile")

    def __post_init__(self) -> None:
        require(self.repetition_penalty > 0, "sampling.repetition_penalty", self.repetition_penalty, "must be above 0",
                "Use 1 for none")  # fmt: skip
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "must not be negative",
                "Use 0 for greedy decoding")  # fmt: skip
        require(self.top_k is None or self.top_k >= 1, "sampling.top_k", self.top_k, "must be at least 1",
                "Use null for all tokens")  # fmt: skip
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "must lie in (0, 1]", "Use 1 for all tokens")
        require(0 <= self.min_p < 1, "sampling.min_p", self.min_p, "must lie in [0, 1)", "Use 0 for all tokens")
        require(self.lookup >= 0, "sampling.lookup", self.lookup, "must not be negative", "Use 0 for one token a step")
        require(not (self.lookup and self.compile), "sampling.compile", self.compile,
                f"takes one token a step, and sampling.lookup={self.lookup} several", "Use one of the two")  # fmt: skip


GREEDY = Sampling(temperature=0.0)

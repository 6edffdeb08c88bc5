"""Which sentence of a minimal pair a model holds for the likelier one (Warstadt et al. 2020, arXiv 1912.00582)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modern_llm.data.minimal_pairs import MinimalPair
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.evaluation.error_analysis import wilson
from modern_llm.evaluation.likelihood import BranchingCausalLM, Progress, log_likelihoods, silent

LEVELS = ("field", "term", "paradigm")


def sentence_log_likelihoods(
    model: BranchingCausalLM,
    tokenizer: Tokenizer,
    pairs: Sequence[MinimalPair],
    batch_size: int,
    progress: Progress = silent,
) -> np.ndarray:
    """Log-likelihoods of both sentences of every pair, in nats, summed over all tokens.

    A sentence stands behind the tokenizer's `prefix_id` (bos, or eos where there is none) and one space, as
    lm-evaluation-harness has it, so its first token counts, too.

    Returns:
        (N, 2) float64, the grammatical sentence first.
    """
    texts = [f" {sentence}" for pair in pairs for sentence in (pair.good, pair.bad)]
    requests = [([tokenizer.prefix_id], ids) for ids in tokenizer.encode_batch(texts)]
    return log_likelihoods(model, requests, batch_size, progress).sums.reshape(-1, 2)


def outcomes(scores: np.ndarray) -> np.ndarray:
    """(N,) 1 where the grammatical sentence is the likelier one, 0 where the other one is, one half at a tie."""
    return (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2


def accuracy(right: np.ndarray, name: str = "accuracy") -> dict[str, float]:
    """Share of the pairs with Wilson's 95 % interval: `<name>`, `<name>_low` and `<name>_high`."""
    low, high = wilson(float(right.sum()), len(right))
    return {name: float(right.mean()), f"{name}_low": low, f"{name}_high": high}


def by_level(
    pairs: Sequence[MinimalPair], right: np.ndarray, level: str, published: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """A row for each field, term or paradigm, beside what was published for it.

    Args:
        pairs, right: N pairs and their outcomes.
        level: one of `LEVELS`.
        published: as in `published_accuracies`.
    """
    names = np.array([getattr(pair, level) for pair in pairs])
    table = []
    for name in dict.fromkeys(names.tolist()):
        mine = right[names == name]
        row = {level: name, "pairs": len(mine), **accuracy(mine)}
        table.append(row | {f"{model} (published)": share for model, share in published.get(name, {}).items()})
    return table

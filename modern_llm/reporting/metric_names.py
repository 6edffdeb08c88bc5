"""What the name of a metric tells: which way is better, which ones a person came for, which are another's bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

Direction = Literal["lower", "higher"]

_LOWER = re.compile(r"(^|_)(loss|perplexity|bits_per_byte|nll|error|errors|error_rate|ece|brier)(_|$)")
_HIGHER = re.compile(
    r"(^|_)(accuracy|f1|precision|recall|exact_match|em|rouge\w*|bleu|reward|margin|win_rate|auc|auroc|mcc|"
    r"pass_at_\d+|calibration_gain)(_|$)"
)
# Per token: comparable between runs with the same tokenizer only.
_PER_TOKEN = re.compile(r"(^|_)(loss|token_perplexity|nll)$")


def direction(name: str) -> Direction | None:
    """Which way a metric is better; None where its name does not say, as for counts, times and training itself."""
    if name.startswith("train"):
        return None
    return "lower" if _LOWER.search(name) else "higher" if _HIGHER.search(name) else None


def per_token(name: str) -> bool:
    """Whether the metric is an average over tokens, and so depends on the tokenizer."""
    return bool(_PER_TOKEN.search(name))


def is_bound(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether the metric is an end of another metric's interval: `accuracy_low` beside `accuracy`."""
    return name.endswith(("_low", "_high")) and name.rpartition("_")[0] in metrics


def headline(result: Mapping[str, Any], metrics: Mapping[str, float]) -> list[str]:
    """The metrics that a person came for: those that `result.json` names in `headline`; without it, the objective and
    those whose name says which way is better; without any, the first four."""
    if isinstance(result.get("headline"), list):
        return [name for name in map(str, result["headline"]) if name in metrics]
    objective = str(result.get("objective_metric"))
    good = [name for name in metrics if direction(name) and not is_bound(name, metrics)]
    return list(dict.fromkeys([*([objective] if objective in metrics else []), *good])) or list(metrics)[:4]

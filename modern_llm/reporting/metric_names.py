"""Which figures of a result a person came for, and which are another's bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modern_llm.evaluation.metrics.registry import direction


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

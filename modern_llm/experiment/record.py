"""What a run measured, and how it is written down, told and shown: one way for every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modern_llm.experiment.contract import RunFolder, tell_paths

if TYPE_CHECKING:
    from pathlib import Path

    from modern_llm.training.runtime import Runtime


@dataclass
class Measured:
    """Final figures, and what to know of them.

    Attributes:
        metrics: name -> value; the ends of an interval as `<name>_low` and `<name>_high`.
        headline: names of the few that one came for.
        evaluated_on: what the figures were measured on, see `evaluated_on`: prefix of metrics -> facts, `""` for the
            rest.
        protocol: what else to know of the figures.
        more: what else the page shows, see `write_run_report`: samples, errors, tables, pictures, notes.
    """

    metrics: dict[str, float]
    headline: Sequence[str]
    evaluated_on: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def evaluated_on(data: str, examples: int, tokenizer: str = "", **facts: Any) -> dict[str, Any]:
    """Facts by which a report knows which figures may be set against each other.

    Args:
        data: fingerprint of exactly the examples or the text that were scored.
        examples: how many.
        tokenizer: fingerprint, where averages over tokens are among the figures.
        facts: further ones, for the reader.
    """
    return {"data": data, "examples": examples, "tokenizer": tokenizer, **facts}


def conclude(
    folder: RunFolder, runtime: Runtime, objective_metric: str, measured: Measured, checkpoint: Path | None = None
) -> dict[str, float]:
    """Write result and page, and print the headline with its intervals. Returns the metrics."""
    from modern_llm.reporting.pages.run import write_run_report
    from modern_llm.reporting.tables import visible

    metrics = measured.metrics
    folder.write_result(
        objective_metric,
        metrics,
        measured.headline,
        evaluated_on=measured.evaluated_on,
        protocol=measured.protocol,
        evaluated_checkpoint=checkpoint.relative_to(folder.path).as_posix() if checkpoint else None,
        runtime=runtime.describe(),
        **measured.more,
    )
    written = write_run_report(folder.path)
    for sample in measured.more.get("samples", []):
        print(f"\n--- sample: {sample['prompt']!r}\n{visible(sample['prompt'] + sample['text'])}")
    for name in measured.headline:
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        bounds = f" (95 % interval {low:.4f} to {high:.4f})" if low is not None and high is not None else ""
        if name in metrics:
            print(f"{name}: {metrics[name]:.4f}{bounds}")
    paths = {"result": folder.path / "result.json"}
    if (folder.path / "errors.jsonl").exists():
        paths["errors"] = folder.path / "errors.jsonl"
    tell_paths(paths | written | ({"checkpoint": checkpoint} if checkpoint is not None else {}))
    return metrics

"""BLiMP: how much grammar a language model knows, by 67 paradigms of minimal pairs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from modern_llm.checks import require
from modern_llm.data.minimal_pairs import MinimalPair, published_accuracies, read_pairs
from modern_llm.data.rows import content_fingerprint
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import Paths, RunFolder, progress_of, say
from modern_llm.experiment.record import Measured, conclude, evaluated_on
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.settings import Hardware

if TYPE_CHECKING:
    import numpy as np

_WORST = 50
_DEFAULTS = Defaults("task/blimp")


@dataclass(frozen=True)
class Blimp:
    """Accuracy of a causal language model on minimal pairs, in all and by field, phenomenon and paradigm, beside what
    was published for other models.

    Args:
        model, hardware, paths: of the same names in the configuration.
        name: of the data set.
        paradigms: which; empty: all.
        max_pairs: the first ones of each paradigm; null: all.

    Raises:
        ValueError: an impossible value.
    """

    model: PretrainedModel | ModelFromRun
    hardware: Hardware
    paths: Paths = field(default_factory=Paths)
    name: str = _DEFAULTS("name")
    paradigms: list[str] = _DEFAULTS("paradigms")
    max_pairs: int | None = _DEFAULTS("max_pairs")
    objective_metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        require(self.max_pairs is None or self.max_pairs >= 1, "task.max_pairs", self.max_pairs, "must be at least 1",
                "Raise it, or use null")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Judge every pair, and write result, table and page. Returns the final metrics."""
        from modern_llm.evaluation import blimp
        from modern_llm.experiment.loading import load_model
        from modern_llm.training.runtime import Runtime

        runtime, mirror = Runtime(self.hardware), self.paths.mirror
        pairs = read_pairs(self.name, mirror, self.paradigms, self.max_pairs)
        published = published_accuracies(self.name, mirror)
        loaded = load_model(self.model, runtime, mirror, [], train=False).merged()
        decoder = loaded.decoder.eval()
        say(f"{self.name}: {len(pairs):,} pairs of {len({pair.paradigm for pair in pairs})} paradigms")
        start = time.perf_counter()
        with runtime.autocast():
            scores = blimp.sentence_log_likelihoods(
                decoder, loaded.tokenizer, pairs, self.hardware.eval_rows, progress_of("judging")
            )
        seconds = time.perf_counter() - start
        right = blimp.outcomes(scores)
        tables = {level: blimp.by_level(pairs, right, level, published) for level in blimp.LEVELS}
        metrics = blimp.accuracy(right)
        for level in ("field", "term"):
            for row in tables[level]:
                metrics |= {f"{row[level]}_{key}": row[key] for key in row if key.startswith("accuracy")}
        overall = {"model": "this one", "accuracy": metrics["accuracy"], "pairs": len(pairs)}
        others = [{"model": f"{name} (published)", "accuracy": share, "pairs": 67_000}
                  for name, share in published.get("overall", {}).items()]  # fmt: skip
        folder.write_lines("pairs.jsonl", [_row(*judged) for judged in zip(pairs, scores.tolist(), right, strict=True)])
        measured = Measured(
            metrics | {
                "pairs": len(pairs),
                "ties": int((right == 0.5).sum()),
                "seconds": seconds,
                "pairs_per_second": len(pairs) / seconds,
                "parameters": loaded.parameter_counts()[0],
                "peak_memory_gb": runtime.peak_memory_gb(),
            },
            ["accuracy", *(f"{row['field']}_accuracy" for row in tables["field"])],
            {"": evaluated_on(content_fingerprint(pairs), len(pairs))},
            {
                "data": self.name,
                "in front of a sentence": f"{loaded.tokenizer.token(loaded.tokenizer.prefix_id)!r} and one space",
                "ties": "count one half",
                "interval": "Wilson's, 95 %",
                "published": "on all 1,000 pairs of each paradigm",
                "base_fingerprint": loaded.fingerprint,
            },
            {
                "tables": {
                    "Beside other models": [overall, *others],
                    **{f"By {level}": rows for level, rows in tables.items()},
                },
                "errors": _errors(pairs, scores, right),
            },
        )  # fmt: skip
        return conclude(folder, runtime, self.objective_metric, measured)


def _row(pair: MinimalPair, scores: list[float], right: float) -> dict[str, Any]:
    return {**pair._asdict(), "good_nats": scores[0], "bad_nats": scores[1], "score": float(right)}


def _errors(pairs: list[MinimalPair], scores: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """The pairs that were judged wrong by the largest margins."""
    margins = scores[:, 0] - scores[:, 1]
    worst = sorted((i for i in range(len(pairs)) if right[i] < 1), key=lambda i: margins[i])[:_WORST]
    return [
        {"paradigm": pairs[i].paradigm, "good": pairs[i].good, "bad": pairs[i].bad, "margin": float(margins[i])}
        for i in worst
    ]

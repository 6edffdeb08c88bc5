"""Where a finished run goes wrong: errors in groups, and the worst ones with their text. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.evaluation.metrics.registry import METRICS
from modern_llm.experiment.contract import RunFolder, tell_paths
from modern_llm.reporting.record import RunRecord, read_rows

_ANSWERS = "predictions.jsonl"
_FIELDS: dict[str, Any] = {"input": str, "reference": str, "prediction": str, "score": int | float}


_DEFAULTS = Defaults("task/error_analysis")


@dataclass(frozen=True)
class ErrorAnalysis:
    """Read a run's answers, group its errors, and show the worst.

    Args:
        path: folder of a finished run that answered examples.
        worst: errors that are shown with their text.
        length_groups: groups of inputs by their length.

    Raises:
        ValueError: the run left no answers.
    """

    path: str
    worst: int = _DEFAULTS("worst")
    length_groups: int = _DEFAULTS("length_groups")
    objective_metric: ClassVar[str] = "error_share"

    def __post_init__(self) -> None:
        for key in ("worst", "length_groups"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1", "Raise it")
        require((Path(self.path).expanduser() / _ANSWERS).is_file(), "task.path", self.path, f"holds no {_ANSWERS}",
                "Give the folder of a finished run that answered examples: task=sst2, task=prompting …")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Group, write and print. Returns the share of errors, by kind where there are kinds."""
        from modern_llm.evaluation import error_analysis as analysis
        from modern_llm.reporting.pages import blocks
        from modern_llm.reporting.tables import markdown, write_csv

        source = Path(self.path).expanduser()
        run = RunRecord.read(source)
        notes = list(run.notes)
        every = read_rows(source / _ANSWERS, notes)
        rows = [row for row in every if all(isinstance(row.get(key), type_) for key, type_ in _FIELDS.items())]
        if len(rows) < len(every):
            notes.append(f"{len(every) - len(rows)} rows of {_ANSWERS} are no answers and were left out")
        require(bool(rows), "task.path", self.path, f"has no answer in {_ANSWERS}", "Run its task again")
        kind = _kind(run.settings, rows)
        parts: dict[str, list[dict[str, Any]]] = {
            "By length of the input": analysis.by_length(rows, self.length_groups)
        }
        if kind == "labels":
            parts["By right label"] = analysis.by_label(rows)
            parts["By confidence"] = analysis.by_confidence(rows)
        elif kind == "numbers":
            parts["By kind of failure"] = analysis.by_kind(rows)
        wrong = sum(1 - float(row["score"]) for row in rows)
        metrics: dict[str, float] = {"examples": len(rows), "errors": wrong, "error_share": wrong / len(rows)}
        metrics["error_share_low"], metrics["error_share_high"] = analysis.wilson(wrong, len(rows))
        for part in parts.get("By kind of failure", []):
            metrics[f"{part['group'].replace(' ', '_')}_share"] = part["share"]
        error = analysis.calibration_error(rows)
        if error is not None:
            metrics["calibration_error"] = error
        worst = analysis.worst(rows, self.worst)
        table = [{"by": name.removeprefix("By "), **row} for name, part in parts.items() for row in part]
        written = {
            "csv": write_csv(["by", "group", "examples", "errors", "share", "low", "high"], table,
                             folder.path / "groups.csv"),
            "worst": folder.write_lines("worst.jsonl", worst),
        }  # fmt: skip
        matrix = analysis.confusion(rows) if kind == "labels" else []
        sections = [
            blocks.cards({name: value for name, value in metrics.items() if not name.endswith(("_low", "_high"))}),
            blocks.notices(notes),
            *(blocks.section(name, blocks.table(["group", "examples", "errors", "share", "low", "high"], part),
                             note="low and high: 95 % interval of the share of errors (Wilson)")
              for name, part in parts.items()),
            blocks.section("Taken for", blocks.table(list(matrix[0]) if matrix else [], matrix)),
            blocks.section(f"The worst {len(worst)}", *(_shown(row) for row in worst)),
        ]  # fmt: skip
        page = blocks.page(f"Errors of {source.name}", f"{len(rows)} answers, {kind}", sections)
        written["report"] = blocks.write_page(folder.path / "report.html", page)
        headline, protocol = ("error_share", "errors", "examples"), {"run": str(source), "answers": kind}
        folder.write_result(self.objective_metric, metrics, headline, notes=notes, protocol=protocol)
        print(markdown(["by", "group", "examples", "errors", "share", "low", "high"], table))
        tell_paths(written)
        return metrics


def _kind(settings: dict[str, Any], rows: list[dict[str, Any]]) -> Literal["labels", "numbers", "texts"]:
    """What the answers are: by the run's record, else by what they look like."""
    task = settings.get("task")
    data = task.get("data") if isinstance(task, dict) else None
    if isinstance(data, dict) and isinstance(data.get("metrics"), list):
        if data.get("choices_column"):
            return "texts"
        chosen = [METRICS[name] for name in data["metrics"] if name in METRICS]
        if any(metric.scores("labels") for metric in chosen):
            return "labels"
        return "numbers" if any(metric.scorer in ("StrictMatch", "FlexibleMatch") for metric in chosen) else "texts"
    if any(str(row.get("detail", "")).startswith("p(") for row in rows):
        return "labels"
    return "numbers" if all(row["score"] in (0, 1) for row in rows) else "texts"


def _shown(row: dict[str, Any]) -> str:
    from modern_llm.reporting.pages import blocks

    facts = ", ".join(
        filter(None, [f"row {row.get('index', '?')}", f"score {row['score']:.3g}", str(row.get("detail", ""))])
    )
    answer = f" → {row['prediction']}\n   right: {row['reference']}"
    return f'<p class="note">{blocks.text(facts)}</p>{blocks.sample(row["input"], answer, 4000)}'

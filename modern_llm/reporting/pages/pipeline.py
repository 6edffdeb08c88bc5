"""The end of a pipeline: one table of what every stage is worth, and a page with curves and answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modern_llm.reporting.curves import curve_data
from modern_llm.reporting.pages import blocks
from modern_llm.reporting.pages.blocks import Cell
from modern_llm.reporting.pages.run import command_of, curve_figure, environment
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import markdown, shown, write_csv

# What of a stage's own run stands in the table.
_OF_RL = ("evaluation_pass_at_1", "evaluation_pass_at_1_gain")
_OF_RUNS = {
    "reward_model": ("evaluation_preference_accuracy",),
    "rl": _OF_RL,
    "rl_rejection": _OF_RL,
    "verifier": ("accuracy", "roc_auc"),
    "best_of_n": ("greedy_em", "majority_em", "verifier_em", "weighted_em", "sample_em"),
}
_JUDGED = [name for stage in ("reward_model", "verifier", "best_of_n") for name in _OF_RUNS[stage]]
_COLUMNS = {
    "perplexity": "perplexity",
    "perplexity_ratio": "perplexity over the base's",
    "bits_per_byte": "bits per byte",
    "conversation_loss": "SFT loss",
    "solved": "problems solved",
    "rl_solved_gain": "problems that rl solves beyond it",
    "evaluation_pass_at_1": "pass@1",
    "evaluation_pass_at_1_gain": "gain in pass@1 by RL",
    "log_prob_accuracy": "prefers chosen",
    "reward_accuracy": "reward accuracy over the stage before",
    "reward_margin": "reward margin",
    "kl_estimate": "KL estimate, nats per answer",
    "win_rate": "win rate over the stage before",
    "judged_win_rate": "judged win rate over the stage before",
    "judged_win_rate_over_sft": "judged win rate over sft",
    "judged_win_rate_over_base": "judged win rate over the base",
    "evaluation_preference_accuracy": "reward model accuracy",
    "accuracy": "verifier accuracy",
    "roc_auc": "verifier AUC",
    "greedy_em": "EM greedy",
    "sample_em": "EM of one sample",
    "majority_em": "EM majority",
    "verifier_em": "EM verifier",
    "weighted_em": "EM weighted vote",
}
_HOW_MEASURED = (
    "Every policy on the same held-out data. Rewards and win rates are judged by the implicit reward: a stage against "
    "the one before it, answers by what DPO taught. Judged win rates are a reward model's or a verifier's."
)


@dataclass(frozen=True)
class StageOutcome:
    """What became of a stage.

    Attributes:
        stage: its name.
        run: its record; empty for a base that was trained elsewhere.
        measured: `metrics` and `samples` of the policy after it; empty for a stage that makes none.
    """

    stage: str
    run: RunRecord
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """What stands in the table, bounds of intervals included."""
        own = {
            name: value
            for name, value in self.run.metrics.items()
            if name.removesuffix("_low").removesuffix("_high") in _OF_RUNS.get(self.stage, ())
        }
        return {**(self.measured.get("metrics") or {}), **own}

    def metrics(self) -> dict[str, float]:
        """The same under names of their own: `<stage>_<name>`."""
        return {f"{self.stage}_{name}": value for name, value in self.figures.items()}

    def samples(self) -> list[dict[str, str]]:
        """What the policy answers, with the stage in front."""
        found = self.measured.get("samples") or []
        return [{"prompt": f"[{self.stage}] {s['prompt']}", "text": s["text"]} for s in found]


def stage_rows(outcomes: Sequence[StageOutcome]) -> list[dict[str, Any]]:
    """A row a stage: `stage`, the figures, and `<figure>_low`, `<figure>_high` where there is an interval."""
    first = next((o.figures["perplexity"] for o in outcomes if "perplexity" in o.figures), None)
    rows = []
    for outcome in outcomes:
        row: dict[str, Any] = {"stage": outcome.stage, **outcome.figures}
        if first and "perplexity" in row:
            row["perplexity_ratio"] = row["perplexity"] / first
        rows.append(row)
    return rows


def write_pipeline_report(folder: Path, outcomes: Sequence[StageOutcome], notes: Sequence[str] = ()) -> dict[str, Path]:
    """Write `table.md`, `table.csv` and `report.html`.

    Args:
        folder: of the pipeline.
        outcomes: of the stages that were run or measured, in their order.
        notes: sentences that stand above the table.

    Returns:
        What was written, by name.
    """
    rows = stage_rows(outcomes)
    used = [name for name in _COLUMNS if any(name in row for row in rows)]
    table = folder / "table.md"
    table.write_text(
        markdown(
            ["stage", *(_COLUMNS[name] for name in used)],
            [{"stage": row["stage"], **{_COLUMNS[name]: _with_interval(row, name) for name in used}} for row in rows],
        )
        + "\n",
        encoding="utf-8",
    )
    every = ["stage", *dict.fromkeys(key for row in rows for key in row if key != "stage")]
    page = _page(RunRecord.read(folder), outcomes, rows, used, notes)
    return {
        "table": table,
        "csv": write_csv(every, rows, folder / "table.csv"),
        "report": blocks.write_page(folder / "report.html", page),
    }


def _with_interval(row: dict[str, Any], name: str) -> str:
    bounds = _interval(row, name)
    return shown(row.get(name)) + (f" ({bounds})" if bounds else "")


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{shown(low)} to {shown(high)}" if low is not None and high is not None else ""


def _page(
    run: RunRecord,
    outcomes: Sequence[StageOutcome],
    rows: list[dict[str, Any]],
    used: Sequence[str],
    notes: Sequence[str],
) -> str:
    def table_of(names: Sequence[str]) -> str:
        shown_names = [name for name in used if name in names]
        cells = [
            {"stage": row["stage"]}
            | {n: Cell(row[n], note=_interval(row, n), title=repr(row[n])) for n in shown_names if n in row}
            for row in rows
        ]
        columns = [blocks.Column("stage"), *(blocks.Column(name, _COLUMNS[name]) for name in shown_names)]
        return blocks.table(columns, [cell for cell in cells if len(cell) > 1])

    trained = [outcome for outcome in outcomes if outcome.run.rows]
    data = curve_data([outcome.run for outcome in trained])
    sections = [
        blocks.section(
            "Policies",
            table_of([name for name in _COLUMNS if name not in _JUDGED]),
            note=" ".join([_HOW_MEASURED, *notes]),
        ),
        blocks.section("Reward model, verifier and best of n", table_of(_JUDGED)),
        blocks.section("Curves", curve_figure(data, [o.stage for o in trained], {}) if data["metrics"] else ""),
        blocks.section("Answers to the same prompts", *_side_by_side(outcomes)),
        blocks.section("Where it ran", blocks.facts(environment(run))),
        blocks.section("Run it again", command_of(run)),
        *(blocks.section(f"Stage {o.stage} alone", command_of(o.run)) for o in outcomes if o.run.sittings),
        blocks.section("Configuration", blocks.details("config.yaml", f"<pre>{blocks.text(run.config)}</pre>")),
    ]
    started = str(run.sittings[0].get("time", "")) if run.sittings else ""
    return blocks.page(run.folder.name, started, sections)


def _side_by_side(outcomes: Sequence[StageOutcome]) -> list[str]:
    answered = [(outcome.stage, outcome.measured["samples"]) for outcome in outcomes if outcome.measured.get("samples")]
    if not answered:
        return []
    columns = [stage for stage, _ in answered]
    prompts = [sample["prompt"] for sample in answered[0][1]]
    rows = []
    for i, prompt in enumerate(prompts):
        texts = {stage: samples[i]["text"].removeprefix(" → ").strip() for stage, samples in answered}
        rows.append({"prompt": prompt, **{stage: text or "(nothing)" for stage, text in texts.items()}})
    return [blocks.table(["prompt", *columns], rows)]

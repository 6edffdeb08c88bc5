"""The page of a ladder: losses and the law through them, the best size for given operations, the prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modern_llm.reporting.comparison.scaling_law import Rung, ScalingLaw, between
from modern_llm.reporting.pages import blocks
from modern_llm.reporting.pages.run import command_of, environment
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import markdown, write_csv


def write_ladder_report(
    folder: Path,
    rungs: Sequence[Rung],
    law: ScalingLaw,
    laws: Sequence[ScalingLaw],
    predicted: Sequence[dict[str, Any]],
) -> dict[str, Path]:
    """Write `table.md`, `rungs.csv`, `law.png`, `best_size.png` and `report.html`.

    Args:
        folder: of the ladder.
        rungs: all of them.
        law: through them.
        laws: through redrawn ones.
        predicted: of the largest size, before it was trained, a row a length.

    Returns:
        What was written, by name.
    """
    rows = [
        {"size": r.size, "seed": r.seed, "parameters that compute": round(r.parameters), "tokens": round(r.tokens),
         "FLOPs": r.flops, "loss": r.loss, "law": law.loss(r.parameters, r.tokens)} for r in rungs
    ]  # fmt: skip
    numbers = [_number(law, laws, *entry) for entry in (
        ("E, the floor", "floor"), ("a, the exponent of sizes", "size_exponent"),
        ("b, the exponent of tokens", "data_exponent"), ("exponent of the best size over operations", "size_share"),
    )]  # fmt: skip
    shown = [{"FLOPs": r["FLOPs"], "loss": r["loss"], **r} for r in rows]
    told = [
        {"size": row["size"], "tokens": round(row["tokens"]), "predicted": row["predicted"],
         "interval": f"{row['low']:.4f} to {row['high']:.4f}", "measured": row["measured"], "error": row["error"]}
        for row in predicted
    ]  # fmt: skip
    parts = [markdown(list(rows[0]), rows), markdown(["number", "value", "95 % interval"], numbers)]
    if told:
        parts.append(markdown(list(told[0]), told))
    table = folder / "table.md"
    table.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    written = {"table": table, "rungs": write_csv(list(shown[0]), shown, folder / "rungs.csv")}
    written["law"] = _draw_law(rungs, law, predicted, folder / "law.png")
    written["best size"] = _draw_best_size(rungs, law, laws, folder / "best_size.png")
    record = RunRecord.read(folder)
    sections = [
        blocks.section("Losses and law", blocks.picture(written["law"], "Loss over tokens, a line a size"),
                       note="Points were measured, lines are the law through all of them. Open points: what smaller "
                       "sizes predicted of the largest one before it was trained, with 95 % intervals."),
        blocks.section("Predicted and measured", blocks.table(list(told[0]) if told else [], told)),
        blocks.section("The law", blocks.table(["number", "value", "95 % interval"], numbers),
                       note="L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022); intervals from fits to redrawn "
                       "errors. N: operations of training per token over 6."),
        blocks.section("The best size", blocks.picture(written["best size"], "Best size over operations"),
                       note="The size with the lowest loss for so many operations of training, and its interval."),
        blocks.section("Rungs", blocks.table(list(rows[0]), rows)),
        blocks.section("Where it ran", blocks.facts(environment(record))),
        blocks.section("Run it again", command_of(record)),
        blocks.section("Configuration", blocks.details("config.yaml", f"<pre>{blocks.text(record.config)}</pre>")),
    ]  # fmt: skip
    page = blocks.page(f"Ladder {folder.name}", _headline(law, told), sections)
    written["report"] = blocks.write_page(folder / "report.html", page)
    return written


def _number(law: ScalingLaw, laws: Sequence[ScalingLaw], name: str, key: str) -> dict[str, Any]:
    low, high = between([getattr(other, key) for other in laws])
    return {"number": name, "value": getattr(law, key), "95 % interval": f"{low:.3g} to {high:.3g}"}


def _headline(law: ScalingLaw, told: Sequence[dict[str, Any]]) -> str:
    told_of = f"; the largest size came out {told[-1]['error']:+.4f} nats from its prediction" if told else ""
    return f"L = {law.floor:.3g} + {law.size_factor:.3g} / N^{law.size_exponent:.3g} + {law.data_factor:.3g} / D^" \
        f"{law.data_exponent:.3g}{told_of}"  # fmt: skip


def _draw_law(rungs: Sequence[Rung], law: ScalingLaw, predicted: Sequence[dict[str, Any]], path: Path) -> Path:
    """Loss over tokens, one colour a size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = list(dict.fromkeys(r.size for r in rungs))
    low, high = min(r.tokens for r in rungs) / 1.2, max(r.tokens for r in rungs) * 1.2
    lengths = [low * (high / low) ** (n / 60) for n in range(61)]
    for number, size in enumerate(sizes):
        own = [r for r in rungs if r.size == size]
        name = size.replace("$", r"\$")
        axes.plot([r.tokens for r in own], [r.loss for r in own], "o", color=f"C{number}", markersize=5, label=name)
        axes.plot(lengths, [law.loss(own[0].parameters, d) for d in lengths], color=f"C{number}", linewidth=1)
    for row in predicted:
        axes.errorbar(row["tokens"] * 1.04, row["predicted"], [[row["predicted"] - row["low"]],
                      [row["high"] - row["predicted"]]], fmt="o", mfc="none", color="0.3", capsize=3)  # fmt: skip
    axes.set(xscale="log", xlabel="tokens", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _draw_best_size(rungs: Sequence[Rung], law: ScalingLaw, laws: Sequence[ScalingLaw], path: Path) -> Path:
    """The best size over operations, with its interval, and the rungs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    low, high = min(r.flops for r in rungs), max(r.flops for r in rungs) * 10
    flops = [low * (high / low) ** (n / 40) for n in range(41)]
    bounds = [between([other.best_size(c) for other in laws]) for c in flops]
    drawn = axes.scatter([r.flops for r in rungs], [r.parameters for r in rungs], c=[r.loss for r in rungs], s=24)
    figure.colorbar(drawn, label="loss (nats per token)")
    best = [law.best_size(c) for c in flops]
    if all(math.isfinite(n) for n in best):
        axes.plot(flops, best, color="C3", linewidth=1.2, label="best size")
        axes.fill_between(flops, [b[0] for b in bounds], [b[1] for b in bounds], color="C3", alpha=0.15, linewidth=0)
        axes.legend(fontsize="small", frameon=False)
    span = [r.parameters for r in rungs]
    axes.set(xscale="log", yscale="log", xlabel="training operations (FLOPs)", ylabel="parameters that compute",
             ylim=(min(span) / 4, max(span) * 8))  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
    return path

"""Loss curves as pictures."""

from __future__ import annotations

from pathlib import Path

from modern_llm.reporting.record import RunRecord


def draw_loss(runs: dict[str, RunRecord], path: Path) -> Path:
    """Training and validation loss over steps, one colour a run.

    Args:
        runs: label -> run.
        path: picture to write; the ending says the format.
    """
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = [f"C{i}" for i in range(10)]
    for number, (label, run) in enumerate(runs.items()):
        colour = colours[number % 10] if len(runs) > 1 else None
        prefix = f"{label}, " if len(runs) > 1 else ""
        steps, losses = run.series("loss")
        label_of_training = None if len(runs) > 1 else "training"
        alpha = 0.35 if len(runs) > 1 else 0.9
        axes.plot(steps, losses, label=label_of_training, color=colour or "C0", alpha=alpha, linewidth=1)
        steps, losses = run.series("validation_loss")
        axes.plot(steps, losses, label=f"{prefix}validation", color=colour or "C1", marker="o", markersize=3)
    axes.set(xlabel="optimiser step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)
    return path

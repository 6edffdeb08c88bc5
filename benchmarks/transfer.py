"""Is one learning rate right for all widths and depths? The default at several of both, under several rates.

python benchmarks/transfer.py [--widths 64 128 256] [--depths 2 4] [--rates 0.01 0.02 0.04 0.08 0.16] [--steps 100]

Each run is a line in outputs/benchmarks/transfer.jsonl and is not done again. The best rate of a shape is the vertex of
the parabola through its best rate and both neighbours, in log rate. Draws outputs/benchmarks/transfer.png. Of another
recipe: --recipe model=decoder trainer/optimizer=muon
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from harness import Runs, print_table
from recipe import trained_default

FOLDER = Path("outputs/benchmarks")


def vertex(rates: list[float], losses: list[float]) -> float | None:
    """The rate at the vertex of the parabola through the best one and its neighbours; None at an end of the range."""
    best = losses.index(min(losses))
    if not 0 < best < len(rates) - 1:
        return None
    (x0, x1, x2), (y0, y1, y2) = (
        [f(values[i]) for i in (best - 1, best, best + 1)] for values, f in ((rates, math.log), (losses, float))
    )
    top = (x1 - x0) ** 2 * (y1 - y2) - (x1 - x2) ** 2 * (y1 - y0)
    return math.exp(x1 - 0.5 * top / ((x1 - x0) * (y1 - y2) - (x1 - x2) * (y1 - y0)))


def draw(curves: dict[tuple[int, int], list[float]], rates: list[float], path: Path) -> None:
    """Loss over rate, a line a shape: a colour a width, a style a depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    widths, depths = (sorted({shape[i] for shape in curves}) for i in (0, 1))
    for (width, depth), losses in curves.items():
        style: Any = ("-", "--", ":", "-.")[depths.index(depth) % 4]
        axes.plot(rates, losses, style, color=f"C{widths.index(width)}", marker="o", markersize=3,
                  label=f"{depth} layers x {width}")  # fmt: skip
    axes.set(xscale="log", xlabel="trainer.optimizer.lr", ylabel="validation loss (nats per token)")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.02, 0.04, 0.08, 0.16])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recipe", nargs="*", default=[], help="overrides, such as trainer/optimizer=muon")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Runs(FOLDER / "transfer.jsonl")
    curves: dict[tuple[int, int], list[float]] = {}
    for width in options.widths:
        for depth in options.depths:
            for rate in options.rates:
                shape = [f"model.d_model={width}", f"model.n_layers={depth}", f"model.n_heads={max(width // 32, 1)}",
                         f"trainer.optimizer.lr={rate}"]  # fmt: skip
                key = {"shape": shape, "recipe": options.recipe, "steps": options.steps, "seed": options.seed}
                known = record.find(key)
                if known is None:
                    loss = trained_default([*options.recipe, *shape], options.steps, options.seed)
                    known = key | {"loss": loss}
                    record.add(known)
                print(f"{depth} layers x {width}, rate {rate:g}: {known['loss']:.4f}", file=sys.stderr)
                curves.setdefault((width, depth), []).append(float(known["loss"]))
    best = {shape: vertex(options.rates, losses) for shape, losses in curves.items()}
    print_table(f"validation loss after {options.steps} steps, by rate",
                ["", *(f"{rate:g}" for rate in options.rates), "best rate"],
                [[f"{depth} layers x {width}", *(f"{loss:.4f}" for loss in losses),
                  "at an end" if best[width, depth] is None else f"{best[width, depth]:.4f}"]
                 for (width, depth), losses in curves.items()])  # fmt: skip
    inside = [rate for rate in best.values() if rate is not None]
    if len(inside) > 1:
        print(f"\nThe best rates differ by a factor of {max(inside) / min(inside):.2f}.")
    draw(curves, options.rates, FOLDER / "transfer.png")


if __name__ == "__main__":
    main()

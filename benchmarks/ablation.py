"""Each part of the recipe by itself: taken out of the default, put into it, and put into the plain decoder; for one
pass over the text, and for many.

python benchmarks/ablation.py [--steps 160] [--seeds 1 2] [--only unet …] [--base model.d_model=256 …]
python benchmarks/ablation.py --regime many_epochs --steps 426

Many epochs are those of WikiText-2 (in a mirror that has a tenth of it, 74 steps an epoch), with what holds such a run
back. Each arm is a set of overrides; all arms of a seed see the same batches. The table has the difference to the
baseline in nats per token with its 95 % interval, and what that is worth in steps: by how much the baseline's run would
have to be shorter or longer for the same loss, from its own loss at 0.8 x the steps. The noise is taken to be the same
in all arms of a table: it is what remains of the losses without the means of arms and of seeds, so that few seeds of
many arms tell it well. Each run is a line in outputs/benchmarks/ablation.jsonl and is not done again.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from harness import Runs, print_table
from recipe import trained_default

PLAIN = ["model/ffn=swiglu", "model/embedding=plain", "model/branches=plain", "model/projections=plain",
         "model/values=plain", "model/init=gpt2", "model.qk_gain=true", "model.attention_scale=1.0",
         "model.tie_embeddings=true", "trainer/optimizer=muon", "trainer/schedule=cosine"]  # fmt: skip
CANON = ["model/branches=plain", "model/projections=plain"]
# Taken out of the default.
WITHOUT = {
    "canon": CANON,
    "canon of branches": ["model/branches=plain"],
    "canon of projections": ["model/projections=plain"],
    "value_table": ["model/values=plain"],
    "value_projection for value_table": ["model/values=value_projection"],
    "normed": ["model/embedding=plain"],
    "relu2 (swiglu)": ["model/ffn=swiglu"],
    "untied head": ["model.tie_embeddings=true"],
    "zero (gpt2)": ["model/init=gpt2"],
    "attention_scale (1)": ["model.attention_scale=1.0"],
    "polar_express (quintic)": ["trainer.optimizer.polynomial=quintic"],
    "normuon's rows": ["trainer.optimizer.variance_decay=null"],
    "momentum warm-up and cool-down": ["trainer.optimizer.momentum_start=null", "trainer.optimizer.momentum_end=null"],
    "cautious decay": ["trainer.optimizer.cautious_decay=false"],
    "decay": ["trainer.optimizer.weight_decay=0"],
    "rates by kind": ["trainer/optimizer/rates=equal"],
    "trapezoid (cosine)": ["trainer/schedule=cosine"],
}
# Put into the default.
WITH = {
    "scaled": ["model/residual=scaled"],
    "unet": ["model/residual=unet"],
    "backout": ["model/residual=backout"],
    "smear": ["model/embedding=[normed,smear]"],
    "value_residual": ["model/values=[value_table,value_residual]"],
    "gated": ["model/heads=gated"],
    "softcap 15": ["model.logit_softcap=15"],
    "local windows": ["model/layers=local"],
    "no_rotary in every fourth layer": ["model/layers=no_rotary"],
    "geglu": ["model/ffn=geglu"],
    "ema": ["trainer/average=ema"],
}
# Put into the plain decoder.
ALONE = {
    "canon of branches": ["model/branches=canon"],
    "canon of projections": ["model/projections=canon"],
    "value_table": ["model/values=value_table"],
    "value_residual": ["model/values=value_residual"],
    "scaled": ["model/residual=scaled"],
    "unet": ["model/residual=unet"],
    "gated": ["model/heads=gated"],
    "smear": ["model/embedding=smear"],
    "softcap 15": ["model.logit_softcap=15"],
    "relu2": ["model/ffn=relu2"],
    "untied head": ["model.tie_embeddings=false"],
    "normuon": ["trainer/optimizer=normuon"],
    "trapezoid": ["trainer/schedule=trapezoid"],
}
# What holds a run of many epochs back; its regularisation is that of experiment=wikitext2_best, for fewer steps.
HELD = ["task=wikitext2", "task/tokenizer=bpe_4k", "task.shuffle_documents=true", "model.dropout=0.2",
        "model.output_dropout=0.1", "trainer.optimizer.weight_decay=0.5", "trainer/average=ema"]  # fmt: skip
MANY = [*HELD, "model/values=value_projection", "model.tie_embeddings=true"]
MANY_WITHOUT = {
    "canon": CANON,
    "value_projection": ["model/values=plain"],
    "value_table for value_projection": ["model/values=value_table"],
    "relu2 (swiglu)": ["model/ffn=swiglu"],
    "tied head": ["model.tie_embeddings=false"],
    "zero (gpt2)": ["model/init=gpt2"],
    "ema": ["trainer/average=none"],
    "dropout": ["model.dropout=0", "model.output_dropout=0"],
    "decay of 0.5 (0.025)": ["trainer.optimizer.weight_decay=0.025"],
    "documents in a new order": ["task.shuffle_documents=false"],
}
MANY_ALONE = {
    "canon": ["model/branches=canon", "model/projections=canon"],
    "value_projection": ["model/values=value_projection"],
    "relu2": ["model/ffn=relu2"],
    "unet": ["model/residual=unet"],
    "gated": ["model/heads=gated"],
    "normuon": ["trainer/optimizer=normuon", "trainer.optimizer.weight_decay=0.5"],
}
MANY_WITH = {name: WITH[name] for name in ("scaled", "unet", "smear", "gated", "softcap 15")} | {
    "value_residual": ["model/values=[value_projection,value_residual]"]
}
REGIMES = {
    "one_pass": {
        "out of the default": ([], WITHOUT),
        "into the default": ([], WITH),
        "into the plain decoder": (PLAIN, ALONE),
    },
    "many_epochs": {
        "out of the recipe for many epochs": (MANY, MANY_WITHOUT),
        "into the recipe for many epochs": (MANY, MANY_WITH),
        "into the plain decoder, many epochs": ([*PLAIN, *HELD], MANY_ALONE),
    },
}


def half_width(losses: np.ndarray) -> float:
    """Of the 95 % interval of a difference between two arms (two-way analysis of variance without interaction).

    Args:
        losses: (arms, seeds).
    """
    arms, seeds = losses.shape
    freedom = (arms - 1) * (seeds - 1)
    if not freedom:
        return math.nan
    noise = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    z = 1.959964  # Student's quantile from the normal one (Abramowitz and Stegun 26.7.5)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(t * math.sqrt(2 * (noise**2).sum() / freedom / seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="*", default=[], help="names of arms")
    parser.add_argument("--regime", default="one_pass", choices=list(REGIMES))
    parser.add_argument("--groups", nargs="*", default=[], help="titles of tables, or their beginnings")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--base", nargs="*", default=[], help="overrides of all arms, such as model.d_model=256")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Runs(Path("outputs/benchmarks/ablation.jsonl"))

    def loss(overrides: list[str], steps: int, seed: int) -> float:
        key = {"overrides": [*options.base, *overrides], "steps": steps, "seed": seed, "precision": options.precision}
        known = record.find(key)
        if known is None:
            known = key | {"loss": trained_default(key["overrides"], steps, seed, options.precision)}
            record.add(known)
            print(f"{' '.join(overrides)}, {steps} steps, seed {seed}: {known['loss']:.4f}", file=sys.stderr)
        return float(known["loss"])

    for title, (base, arms) in REGIMES[options.regime].items():
        if options.groups and not title.startswith(tuple(options.groups)):
            continue
        arms = {name: changes for name, changes in arms.items() if not options.only or name in options.only}
        if not arms:
            continue
        whole = [loss(base, options.steps, seed) for seed in options.seeds]
        shorter = [loss(base, round(0.8 * options.steps), seed) for seed in options.seeds]
        per_fold = (mean(shorter) - mean(whole)) / math.log(1 / 0.8)  # nats for e times the steps
        changed = {name: [loss([*base, *changes], options.steps, seed) for seed in options.seeds]
                   for name, changes in arms.items()}  # fmt: skip
        half = half_width(np.array([whole, *changed.values()]))
        rows = [["baseline", f"{mean(whole):.4f}", "", ""]]
        for name, losses in changed.items():
            difference = mean(losses) - mean(whole)
            low, high = (100 * (math.exp(-(difference + side) / per_fold) - 1) for side in (half, -half))
            rows.append(
                [name, f"{mean(losses):.4f}", f"{difference:+.3f} ± {half:.3f}", f"{low:+.0f} to {high:+.0f} %"]
            )
        print_table(f"{title}: {options.steps} steps, {len(options.seeds)} seeds",
                    ["", "nats per token", "difference", "worth in steps"], rows)  # fmt: skip


if __name__ == "__main__":
    main()

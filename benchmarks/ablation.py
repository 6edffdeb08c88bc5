"""Each part of the recipe by itself: taken out of the default, and put into the plain decoder.

python benchmarks/ablation.py [--steps 160] [--seeds 1 2 3] [--only canon …]

Each arm is a set of overrides; all arms of a seed see the same batches. The table has the paired difference to its
baseline in nats per token with a 95 % interval over seeds, and what that is worth in steps: by how much the baseline's
run would have to be shorter or longer for the same loss, from its own loss at 0.8 x the steps. Each run is a line in
outputs/benchmarks/ablation.jsonl and is not done again.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import mean

import torch
from harness import Runs, print_table
from recipe import interval, trained_default

PLAIN = ["model/ffn=swiglu", "model/embedding=plain", "model/branches=plain", "model/values=plain", "model/init=gpt2",
         "model.qk_gain=true", "model.attention_scale=1.0", "model.tie_embeddings=true", "trainer/optimizer=muon",
         "trainer/schedule=cosine"]  # fmt: skip
# Taken out of the default.
WITHOUT = {
    "canon": ["model/branches=plain"],
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
    "canon": ["model/branches=canon"],
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
GROUPS = {"out of the default": ([], WITHOUT), "into the default": ([], WITH), "into the plain decoder": (PLAIN, ALONE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="*", default=[], help="names of arms")
    parser.add_argument("--base", nargs="*", default=[], help="overrides of all arms, such as model.d_model=256")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Runs(Path("outputs/benchmarks/ablation.jsonl"))

    def loss(overrides: list[str], steps: int, seed: int) -> float:
        key = {"overrides": [*options.base, *overrides], "steps": steps, "seed": seed}
        known = record.find(key)
        if known is None:
            known = key | {"loss": trained_default(key["overrides"], steps, seed)}
            record.add(known)
            print(f"{' '.join(overrides)}, {steps} steps, seed {seed}: {known['loss']:.4f}", file=sys.stderr)
        return float(known["loss"])

    for title, (base, arms) in GROUPS.items():
        arms = {name: changes for name, changes in arms.items() if not options.only or name in options.only}
        if not arms:
            continue
        whole = [loss(base, options.steps, seed) for seed in options.seeds]
        shorter = [loss(base, round(0.8 * options.steps), seed) for seed in options.seeds]
        per_fold = (mean(shorter) - mean(whole)) / math.log(1 / 0.8)  # nats for e times the steps
        rows = [["baseline", f"{mean(whole):.4f}", "", ""]]
        for name, changes in arms.items():
            changed = [loss([*base, *changes], options.steps, seed) for seed in options.seeds]
            difference = [a - b for a, b in zip(changed, whole, strict=True)]
            rows.append([name, f"{mean(changed):.4f}", interval(difference),
                         f"{100 * (math.exp(-mean(difference) / per_fold) - 1):+.0f} %"])  # fmt: skip
        print_table(f"{title}: {options.steps} steps, {len(options.seeds)} seeds",
                    ["", "nats per token", "difference", "worth in steps"], rows)  # fmt: skip


if __name__ == "__main__":
    main()

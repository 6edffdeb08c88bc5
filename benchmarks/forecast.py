"""What a run needs on more cards than are here: memory, messages, and the batch that hides them.

python benchmarks/forecast.py [--processes 1 8 16 64] [--rate 400] [--inside 450] [--between 50] [overrides …]

The memory plan (training/memory/plan.py) and closed forms (training/parallel/traffic.py), which tests hold against what
torch allocates and sends in runs of up to four processes on a CPU; no such machine was measured. The rate in TFLOP/s
and the bytes in GB/s that a card sends, inside a machine of eight and between machines, are nominal ones of H100 SXM
with NVLink and one 400 Gb/s adapter each, the rate at the utilisation that nanochat and llm.c report.
"""

from __future__ import annotations

import argparse

import torch
from harness import print_table
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.defaults import CONFIG_FOLDER
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.memory.plan import Step, plan_memory
from modern_llm.training.parallel.traffic import traffic

CARDS_OF_A_MACHINE = 8
SIZES = {
    "modern_124m": ["model=modern_124m"],
    "24 x 2048": ["model=modern_124m", "model.d_model=2048", "model.n_layers=24", "model.n_heads=16"],
    "32 x 4096": ["model=modern_124m", "model.d_model=4096", "model.n_layers=32", "model.n_heads=32"],
}
VOCABULARY = 32768
ROWS = 16  # of 1024 tokens of each card in a step


def step_of(model: ModernLLMConfig) -> Step:
    """Rows of text as long as the model reads."""

    def batch(rows: int) -> dict[str, torch.Tensor]:
        ids = torch.zeros(rows, model.max_seq_len, dtype=torch.long)
        return {"input_ids": ids, "labels": ids}

    return Step(ModernDecoderLM(model), LanguageModeling(), batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 16, 64])
    parser.add_argument("--rate", type=float, default=400)
    parser.add_argument("--inside", type=float, default=450)
    parser.add_argument("--between", type=float, default=50)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        forecast(options)


def forecast(options: argparse.Namespace) -> None:
    """Print the table."""
    rows = []
    for size, shape in SIZES.items():
        for count in options.processes:
            for sharding in ("none", "optimizer", "full") if count > 1 else ("none",):
                words = ["task=tinystories", "hardware=h100", f"hardware.micro_batch_size={ROWS}",
                         "hardware.memory_limit_gb=null", f"trainer.batch_size={ROWS * count}", "name=forecast",
                         "hardware.activation_checkpointing=true",
                         f"hardware.sharding={sharding}", *shape, *options.overrides]  # fmt: skip
                task = build(compose("config", overrides=words).task)
                model, length = task.model.with_vocab_size(VOCABULARY), task.model.max_seq_len
                plan = plan_memory(lambda _, m=model: step_of(m), task.trainer, task.hardware, count)
                sent = traffic(model, task.trainer, task.hardware, count)
                bandwidth = (options.inside if count <= CARDS_OF_A_MACHINE else options.between) * 1e9
                flops = model.flops_per_token(length)
                seconds = ROWS * length * flops / (options.rate * 1e12)
                hidden = sent.tokens_to_hide(flops, options.rate * 1e12, bandwidth)
                rows.append([f"{size}, {model.parameter_count() / 1e9:.2f}B", str(count), sharding,
                             f"{plan.total / 1e9:.0f}", f"{sent.sent / 1e9:.1f}" if count > 1 else "",
                             f"{max(hidden / length, 0.1):,.1f}" if count > 1 else "",
                             f"{100 * sent.exposed / bandwidth / seconds:.0f} %" if count > 1 else ""])  # fmt: skip
    print_table(f"{ROWS} rows of 1024 tokens in a step of each card, bf16, activation checkpointing",
                ["", "cards", "sharding", "GB of each", "GB sent by each in a step", "rows that hide it",
                 "not hidden, of the passes"], rows)  # fmt: skip


if __name__ == "__main__":
    main()

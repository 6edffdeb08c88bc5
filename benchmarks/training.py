"""Training steps: ours through the Trainer, ours in a bare loop, and peers in the same bare loop: transformers' Llama,
and with a snapshot of karpathy/nanoGPT its model.

python benchmarks/training.py [--nanogpt FOLDER] [--peer llama|nanogpt]

6 layers, width 384, batch 8 x 256, vocabulary 50304 and 8192; on a GPU 124M parameters, 16 x 1024 tokens, bf16,
torch.compile, with utilisation. Ratios are against the peer that is named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import in_own_process, machine, peak_memory_mib, print_table

from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.callbacks import Callback
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.optimization.schedules import Constant
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings
from modern_llm.training.trainer import Trainer

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
STEPS, ROUNDS = (20, 5) if GPU else (3, 3)
OURS, BARE = "ours, Trainer", "ours, bare loop"
PEERS = {"llama": "transformers Llama, bare loop", "nanogpt": "nanoGPT, bare loop"}
SHAPE = (
    {"d_model": 768, "n_layers": 12, "n_heads": 12, "ffn_hidden_size": 2048, "max_seq_len": 1024}
    if GPU
    else {"d_model": 384, "n_layers": 6, "n_heads": 6, "ffn_hidden_size": 1024, "max_seq_len": 256}
)
BATCH = 16 if GPU else 8


class RandomBatches:
    """The same random tokens again and again: the time of a step does not depend on them."""

    def __init__(self, vocab_size: int) -> None:
        ids = torch.randint(
            0, vocab_size, (BATCH, SHAPE["max_seq_len"] + 1), generator=torch.Generator().manual_seed(0)
        )
        self.batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Clock(Callback):
    """Seconds between the ends of consecutive steps: all that the Trainer does counts."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, step: int, loss: float) -> None:
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def hardware() -> Hardware:
    return Hardware(device=DEVICE.type, precision="bf16" if GPU else "fp32", compile=GPU)


def our_model(vocab_size: int) -> ModernDecoderLM:
    torch.manual_seed(0)
    return ModernDecoderLM(our_config(vocab_size))


def through_the_trainer(vocab_size: int) -> Callable[[], list[float]]:
    """A fit of STEPS steps behind one that is not counted."""
    model, runtime = our_model(vocab_size), Runtime(hardware())

    def run() -> list[float]:
        clock = Clock()
        settings = TrainerSettings(
            max_steps=STEPS + 1,
            batch_size=BATCH,
            optimizer=AdamW(),
            schedule=Constant(0.0),
            log_every=1,
            save_every=10**9,
            eval_every=10**9,
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(settings, runtime, Path(folder), callbacks=[clock])
            trainer.fit(model, LanguageModeling(), RandomBatches(vocab_size), None, model.config.flops_per_token(256))
        return clock.seconds

    return run


def bare_loop(model: torch.nn.Module, vocab_size: int, loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor]):
    """STEPS steps of the shortest loop that does the same work."""
    data = RandomBatches(vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    runtime = Runtime(hardware())

    def step() -> float:
        start = time.perf_counter()
        batch = {name: t.to(DEVICE, non_blocking=True) for name, t in next(data).items()}
        with runtime.autocast():
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - start

    return lambda: [step() for _ in range(STEPS + 1)][1:]


def ours_bare(vocab_size: int) -> Callable[[], list[float]]:
    model = our_model(vocab_size)
    Runtime(hardware()).prepare(model)
    return bare_loop(model, vocab_size, lambda batch: model(batch["input_ids"], labels=batch["labels"]).loss)


def theirs_bare(vocab_size: int) -> Callable[[], list[float]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=SHAPE["d_model"],
        intermediate_size=SHAPE["ffn_hidden_size"],
        num_hidden_layers=SHAPE["n_layers"],
        num_attention_heads=SHAPE["n_heads"],
        max_position_embeddings=SHAPE["max_seq_len"],
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(DEVICE).train()
    if GPU:
        model.compile()
    # `shift_labels` are labels that are shifted already, as ours.
    return bare_loop(
        model,
        vocab_size,
        lambda batch: model(batch["input_ids"], labels=batch["labels"], shift_labels=batch["labels"]).loss,
    )


def nanogpt_bare(vocab_size: int) -> Callable[[], list[float]]:
    from model import GPT, GPTConfig

    torch.manual_seed(0)
    config = GPTConfig(
        SHAPE["max_seq_len"], vocab_size, SHAPE["n_layers"], SHAPE["n_heads"], SHAPE["d_model"], 0.0, False
    )
    model = GPT(config).to(DEVICE).train()
    trained = torch.compile(model) if GPU else model
    return bare_loop(model, vocab_size, lambda batch: trained(batch["input_ids"], batch["labels"])[1])


SIDES = {OURS: through_the_trainer, BARE: ours_bare, PEERS["llama"]: theirs_bare, PEERS["nanogpt"]: nanogpt_bare}


def main() -> None:
    """Time the sides in turn in this process, and measure each one's peak memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder with a snapshot of karpathy/nanoGPT")
    parser.add_argument("--peer", choices=PEERS, default="llama")
    parser.add_argument("one", nargs="*", help="a side and a vocabulary, whose peak memory is printed")
    options = parser.parse_args()
    given = [] if options.nanogpt is None else ["--nanogpt", str(options.nanogpt)]
    sys.path += given[1:]
    if options.one:
        side, vocabulary = options.one
        SIDES[side](int(vocabulary))()
        print(peak_memory_mib())
        return
    if options.peer == "nanogpt" and not given:
        parser.error("--peer nanogpt needs --nanogpt FOLDER")
    peer = PEERS[options.peer]
    chosen = [OURS, BARE, peer]
    print(machine())
    for vocab_size in (50304,) if GPU else (50304, 8192):
        sides = {name: SIDES[name](vocab_size) for name in chosen}
        times: dict[str, list[list[float]]] = {name: [] for name in sides}
        for run in sides.values():
            run()
        for _ in range(ROUNDS):
            for name, run in sides.items():
                times[name].append(run())
        memory = {name: float(in_own_process(*given, name, str(vocab_size))) for name in sides}
        tokens = BATCH * SHAPE["max_seq_len"]
        best = {name: median(t for round_ in rounds for t in round_) for name, rounds in times.items()}
        # Ratios round by round: the machine's speed drifts, and both sides of a round meet the same machine.
        ratio = {
            name: median(median(a) / median(b) for a, b in zip(times[peer], times[name], strict=True)) for name in sides
        }
        rows = []
        for name in sides:
            row = [name, f"{tokens / best[name]:,.0f}", f"{ratio[name]:.2f} x", f"{memory[name]:,.0f}"]
            row.append(f"{memory[name] / memory[peer]:.2f} x")
            if GPU:
                flops = our_config(vocab_size).flops_per_token(SHAPE["max_seq_len"])
                row.append(f"{tokens / best[name] * flops / Runtime(hardware()).peak_flops()[0]:.0%}")
            rows.append(row)
        header = ["side", "tokens/s", "speed", "peak MiB", "memory", *(["MFU"] if GPU else [])]
        print_table(f"Training, vocabulary {vocab_size}, {SHAPE}, batch {BATCH}", header, rows)
        overhead = median(median(a) / median(b) for a, b in zip(times[OURS], times[BARE], strict=True)) - 1
        print(f"\nTrainer over a bare loop on the same model: {overhead:+.1%}")


def our_config(vocab_size: int) -> ModernLLMConfig:
    return ModernLLMConfig(vocab_size=vocab_size, **SHAPE)


if __name__ == "__main__":
    main()

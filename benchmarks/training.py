"""Training steps: ours through the Trainer, ours in a bare loop, and peers in the same bare loop: transformers' Llama,
litgpt's Llama where it is installed, and with a snapshot of karpathy/nanoGPT its model.

python benchmarks/training.py [--nanogpt FOLDER] [--precision fp32 bf16] [--vocabulary 50304 8192] [--compile]
    [--peers nanoGPT]

6 layers, width 384, batch 8 x 256; on a GPU 124M parameters, 16 x 1024 tokens, bf16, torch.compile, with utilisation.
All sides take turns, on a CPU in processor seconds, which do not count what else runs on the machine; `--compile`
times every side eager and compiled there. Ratios are round by round, ours through the Trainer against the fastest peer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import figure, in_own_process, peak_memory_mib, print_table

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
OURS, BARE, COMPILED = "ours, Trainer", "ours, bare loop", ", compiled"
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


clock = time.perf_counter if GPU else time.process_time
precision, compiled = "bf16" if GPU else "fp32", GPU  # of the side that is made


class Clock(Callback):
    """Seconds between the ends of consecutive steps: all that the Trainer does counts."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, step: int, loss: float) -> None:
        self.times.append(clock())

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def hardware() -> Hardware:
    return Hardware(device=DEVICE.type, precision=precision, compile=compiled)


def our_model(vocab_size: int) -> ModernDecoderLM:
    torch.manual_seed(0)
    return ModernDecoderLM(our_config(vocab_size))


def through_the_trainer(vocab_size: int) -> Callable[[], list[float]]:
    """A fit of STEPS steps behind one that is not counted."""
    model, runtime = our_model(vocab_size), Runtime(hardware())

    def run() -> list[float]:
        watch = Clock()
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
            trainer = Trainer(settings, runtime, Path(folder), callbacks=[watch])
            trainer.fit(model, LanguageModeling(), RandomBatches(vocab_size), None, model.config.flops_per_token(256))
        return watch.seconds

    return run


def bare_loop(model: torch.nn.Module, vocab_size: int, loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor]):
    """STEPS steps of the shortest loop that does the same work."""
    data = RandomBatches(vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    runtime = Runtime(hardware())

    def step() -> float:
        start = clock()
        batch = {name: t.to(DEVICE, non_blocking=True) for name, t in next(data).items()}
        with runtime.autocast():
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return clock() - start

    return lambda: [step() for _ in range(STEPS + 1)][1:]


def ours_bare(vocab_size: int) -> Callable[[], list[float]]:
    model = our_model(vocab_size)
    Runtime(hardware()).prepare(model, same_shape=True)
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
    if compiled:
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
    trained = torch.compile(model) if compiled else model
    return bare_loop(model, vocab_size, lambda batch: trained(batch["input_ids"], batch["labels"])[1])


def litgpt_bare(vocab_size: int) -> Callable[[], list[float]]:
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    torch.manual_seed(0)
    model = GPT(
        Config(
            block_size=SHAPE["max_seq_len"],
            padded_vocab_size=vocab_size,
            n_layer=SHAPE["n_layers"],
            n_head=SHAPE["n_heads"],
            n_embd=SHAPE["d_model"],
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=SHAPE["ffn_hidden_size"],
        )
    ).to(DEVICE)
    model.lm_head.weight = model.transformer.wte.weight
    trained = torch.compile(model) if compiled else model
    return bare_loop(
        model,
        vocab_size,
        lambda batch: chunked_cross_entropy(trained(batch["input_ids"]), batch["labels"], chunk_size=0),
    )


PEERS = {"transformers": theirs_bare, "nanoGPT": nanogpt_bare, "litgpt": litgpt_bare}
SIDES = {OURS: through_the_trainer, BARE: ours_bare, **PEERS}


def made(side: str, vocab_size: int, chosen_precision: str) -> Callable[[], list[float]]:
    """What runs some steps of a side, which is compiled where its name says so, and returns their seconds."""
    global precision, compiled
    precision, compiled = chosen_precision, GPU or side.endswith(COMPILED)
    return SIDES[side.removesuffix(COMPILED)](vocab_size)


def main() -> None:
    """Time the sides in turn in this process, and measure each one's peak memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder with a snapshot of karpathy/nanoGPT")
    parser.add_argument("--precision", nargs="*", choices=["fp32", "bf16"], default=[precision])
    parser.add_argument("--vocabulary", nargs="*", type=int, default=[50304] if GPU else [50304, 8192])
    parser.add_argument("--compile", action="store_true", help="every side compiled, too")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="whom to compare with")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peak", nargs=3, metavar=("SIDE", "VOCABULARY", "PRECISION"), help="print one peak and stop")
    options = parser.parse_args()
    given = [] if options.nanogpt is None else ["--nanogpt", str(options.nanogpt)]
    sys.path += given[1:]
    if options.peak:
        side, vocabulary, chosen = options.peak
        made(side, int(vocabulary), chosen)()
        print(peak_memory_mib())
        return
    here = {"transformers": True, "nanoGPT": bool(given), "litgpt": find_spec("litgpt") is not None}
    peers = [peer for peer in PEERS if here[peer] and peer in options.peers]
    for absent in (peer for peer in options.peers if not here[peer]):
        print(f"{absent} is not here" + (": give --nanogpt FOLDER" if absent == "nanoGPT" else ": pip install it"))
    sides = [OURS, BARE, *peers]
    if options.compile and not GPU:
        sides += [side + COMPILED for side in sides]
    for chosen in options.precision:
        for vocab_size in options.vocabulary:
            compare(sides, vocab_size, chosen, options.rounds, given)


def compare(sides: list[str], vocab_size: int, chosen: str, rounds: int, given: list[str]) -> None:
    """Print the table of one vocabulary and precision."""
    runs = {side: made(side, vocab_size, chosen) for side in sides}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for side, run in runs.items():
            times[side].append(median(run()))
    del runs
    memory = {side: float(in_own_process(*given, "--peak", side, str(vocab_size), chosen)) for side in sides}
    tokens = BATCH * SHAPE["max_seq_len"]
    took = {side: median(seconds) for side, seconds in times.items()}
    ours = min((side for side in sides if side.startswith(OURS)), key=lambda side: took[side])
    peer = min((side for side in sides if not side.startswith("ours")), key=lambda side: took[side])
    # Ratios round by round: the machine's speed drifts, and both sides of a round meet the same machine.
    ratio = {side: median(a / b for a, b in zip(times[peer], times[side], strict=True)) for side in sides}
    rows = []
    for side in sides:
        row = [side, f"{tokens / took[side]:,.0f}", f"{ratio[side]:.2f} x", f"{memory[side]:,.0f}"]
        row.append(f"{memory[side] / memory[peer]:.2f} x")
        if GPU:
            flops = our_config(vocab_size).flops_per_token(SHAPE["max_seq_len"])
            row.append(f"{tokens / took[side] * flops / Runtime(hardware()).peak_flops()[0]:.0%}")
        rows.append(row)
    header = ["side", "tokens/s", "speed", "peak MiB", "memory", *(["MFU"] if GPU else [])]
    print_table(f"Training, {chosen}, vocabulary {vocab_size}, {SHAPE}, batch {BATCH}", header, rows)
    overhead = median(a / b for a, b in zip(times[OURS], times[BARE], strict=True)) - 1
    print(f"\nTrainer over a bare loop on the same model: {overhead:+.1%}", flush=True)
    what = f"{chosen}, vocabulary {vocab_size}, against {peer}"
    figure(f"speed, {what}", "tokens/s", tokens / took[ours], tokens / took[peer], ratio[ours])
    figure(f"memory, {what}", "MiB", memory[ours], memory[peer], memory[ours] / memory[peer], at_most=True)


def our_config(vocab_size: int) -> ModernLLMConfig:
    return ModernLLMConfig(vocab_size=vocab_size, qk_norm=False, **SHAPE)  # which Llama and GPT-2 have not


if __name__ == "__main__":
    main()

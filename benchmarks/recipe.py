"""This project's default against nanochat and nanoGPT: what is learned from each token and in each second.

python benchmarks/recipe.py --nanochat FOLDER [--nanogpt FOLDER] [--steps 160 480] [--seeds 1 2 3 4 5]

All train on the same batches in the same order and are measured on the same validation tokens, nothing compiled or
with `--compile` all, in fp32 or with `--precision bf16` (each with bf16 products in its own way). A peer is read from
a folder that holds a snapshot of its repository; it trains by its own rules at its own rates and at multiples of them,
of which the best counts. Ours gets `--share` of the steps, with a schedule that ends there: where it is then no worse
than the peer, it needed that share of the tokens. Each run is a line in outputs/benchmarks/recipe.jsonl and is not
done again. Seconds are the median step of each, taken in turns.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

# nanochat decorates its optimiser: all are compiled, or none.
os.environ["TORCHDYNAMO_DISABLE"] = "0" if "--compile" in sys.argv else "1"

import torch
from harness import Runs, interleave, print_table
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.config.instantiate import build
from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.tokens import TokenCorpus, tokenise
from modern_llm.defaults import CONFIG_FOLDER
from modern_llm.evaluation.perplexity import windows
from modern_llm.models import ModernDecoderLM
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.averaged import AveragedWeights

COMPILED = os.environ["TORCHDYNAMO_DISABLE"] == "0"
RECORD = Path("outputs/benchmarks/recipe.jsonl")
NANOCHAT_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}  # two-sided, by the number of pairs


@dataclass
class Rival:
    """One model with its optimiser.

    Attributes:
        model: what is trained.
        step: one optimiser step on a batch; called with the batch and the number of the step.
        nll: (B, T) losses of ids and labels (B, T).
    """

    model: nn.Module
    step: Callable[[dict[str, Tensor], int], None]
    nll: Callable[[Tensor, Tensor], Tensor]

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def tables(self) -> int:
        """Those that are looked up and multiply nothing."""
        linear = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Linear)}
        embeddings = {id(m.weight): m.weight for m in self.model.modules() if isinstance(m, nn.Embedding)}
        own = {id(p): p for name, p in self.model.named_parameters() if name.endswith(".table")}
        return sum(p.numel() for i, p in {**embeddings, **own}.items() if i not in linear)


def bf16_products(precision: str) -> torch.autocast:
    """Products in bf16 where `precision` says so."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def ours(task: Any, vocab_size: int, steps: int, seed: int, precision: str) -> Rival:
    """The default of this project, by the arithmetic of its Trainer."""
    torch.manual_seed(seed)
    model = ModernDecoderLM(task.model.with_vocab_size(vocab_size)).train()
    settings, objective = task.trainer, LanguageModeling()
    optimizer = settings.optimizer.build(model)
    optimizer.half = precision == "bf16"
    averaged = AveragedWeights(settings.average, model)
    for block in model.blocks if COMPILED else []:
        block.compile()  # as hardware.compile does

    def step(batch: dict[str, Tensor], number: int) -> None:
        with bf16_products(precision):
            output = objective(model, batch)
        output.loss(objective.count(batch), len(batch["input_ids"])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or math.inf)
        factor = settings.schedule.factor(number, steps)
        settings.optimizer.adjust(optimizer, factor, number / max(steps - 1, 1))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.take(number + 1, number / max(steps - 1, 1))
        if number + 1 == steps:
            averaged.settle()

    def nll(ids: Tensor, labels: Tensor) -> Tensor:
        with bf16_products(precision):
            logits = model(ids).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    return Rival(model, step, nll)


def nanochat(task: Any, vocab_size: int, steps: int, seed: int, rate: float, warmup: int) -> Rival:
    """nanochat's model, optimiser and schedules, as its base_train.py sets them up; rates times `rate`."""
    from nanochat.gpt import GPT, GPTConfig

    torch.manual_seed(seed)
    shape = task.model
    model = GPT(GPTConfig(shape.max_seq_len, vocab_size, shape.n_layers, shape.n_heads, shape.n_heads, shape.d_model,
                          window_pattern="L"))  # fmt: skip
    model.init_weights()
    batch_tokens = task.trainer.batch_size * shape.max_seq_len
    decay = 0.28 * math.sqrt(batch_tokens / 2**19)
    optimizer = model.setup_optimizer(unembedding_lr=0.008 * rate, embedding_lr=0.3 * rate, matrix_lr=0.02 * rate,
                                      scalar_lr=0.5 * rate, weight_decay=decay)  # fmt: skip
    warmdown = round(0.65 * steps)
    trained = torch.compile(model) if COMPILED else model

    def step(batch: dict[str, Tensor], number: int) -> None:
        trained(batch["input_ids"], batch["labels"]).backward()
        left = (steps - number) / warmdown
        factor = (number + 1) / warmup if number < warmup else 1.0 if left >= 1 else left + (1 - left) * 0.05
        momentum = 0.85 + 0.12 * min(number / 400, 1)
        if number >= 400 and left < 1:
            momentum = 0.9 + 0.07 * left
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * number / steps))
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return Rival(model, step, lambda ids, labels: model(ids, labels, loss_reduction="none").view(labels.shape))


def nanogpt(task: Any, vocab_size: int, steps: int, seed: int, rate: float, precision: str) -> Rival:
    """nanoGPT's model and AdamW with the settings of its smallest recipe; rates times `rate`."""
    from model import GPT, GPTConfig

    torch.manual_seed(seed)
    shape = task.model
    model = GPT(GPTConfig(shape.max_seq_len, vocab_size, shape.n_layers, shape.n_heads, shape.d_model, 0.0, False))
    optimizer = model.configure_optimizers(0.1, 1e-3 * rate, (0.9, 0.99), "cpu")
    warmup = max(round(0.05 * steps), 1)
    trained = torch.compile(model) if COMPILED else model

    def step(batch: dict[str, Tensor], number: int) -> None:
        with bf16_products(precision):
            loss = trained(batch["input_ids"], batch["labels"])[1]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = (number - warmup) / max(steps - warmup, 1)
        factor = (number + 1) / warmup if number < warmup else 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def nll(ids: Tensor, labels: Tensor) -> Tensor:
        with bf16_products(precision):
            logits = model(ids, labels)[0].float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    return Rival(model, step, nll)


@torch.no_grad()
def validation_loss(rival: Rival, corpus: TokenCorpus, length: int) -> float:
    """Nats per token, separators left out, in windows of `length`."""
    rival.model.eval()
    spans = [span for span in windows(len(corpus.ids), length, length) if span[1] - span[0] == length]
    total, count = 0.0, 0
    for start in range(0, len(spans), 16):
        rows = torch.stack(
            [torch.from_numpy(corpus.ids[a : b + 1].astype("int64")) for a, b, _ in spans[start : start + 16]]
        )
        kept = rows[:, 1:] != corpus.eos_id
        total += float(rival.nll(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())[kept].double().sum())
        count += int(kept.sum())
    rival.model.train()
    return total / count


def trained_default(overrides: list[str], steps: int, seed: int, precision: str = "fp32") -> float:
    """Validation loss of the default with some overrides, trained for `steps` on one thread."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        task = build(compose("config", overrides=["name=x", *overrides]).task)
    places = (task.paths.cache_folder, task.paths.mirror)
    tokenizer = task.tokenizer.prepare(task.data, *places)
    train, held_out = (tokenise(task.data, split, tokenizer, *places) for split in ("train", "validation"))
    stream = PackedStream(train, task.model.max_seq_len, task.trainer.batch_size, seed,
                          shuffle_documents=task.shuffle_documents)  # fmt: skip
    rival = ours(task, tokenizer.vocab_size, steps, seed, precision)
    for number in range(steps):
        rival.step(contiguous(next(stream)), number)
    return validation_loss(rival, held_out, task.model.max_seq_len)


def contiguous(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The peers view their targets flat."""
    return {name: tensor.contiguous() for name, tensor in batch.items()}


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of paired differences (Student's t)."""
    if len(values) < 2:
        return f"{values[0]:+.3f}"
    half = T_95.get(len(values), 2.0) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):+.3f} [{mean(values) - half:+.3f}, {mean(values) + half:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanochat", type=Path, help="folder with a snapshot of karpathy/nanochat")
    parser.add_argument("--nanogpt", type=Path, help="folder with a snapshot of karpathy/nanoGPT")
    parser.add_argument("--steps", type=int, nargs="+", default=[160, 480], help="of the peers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--share", type=float, default=0.8, help="of the peers' steps that ours gets")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="multiples of the peers' rates")
    parser.add_argument("--warmup", type=int, default=40, help="steps that nanochat's rates rise for, its own default")
    parser.add_argument("--precision", choices=NANOCHAT_DTYPES, default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile ours block by block, peers whole")
    parser.add_argument("--ours", nargs="*", default=[], help="overrides of the default, such as model.d_model=256")
    parser.add_argument("--only", nargs="*", default=[], help="names of rivals, to divide the work")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each that are timed in turns; 0: none")
    options = parser.parse_args()
    for folder in (options.nanochat, options.nanogpt):
        if folder is not None:
            sys.path.insert(0, str(folder.resolve()))
    os.environ["NANOCHAT_DTYPE"] = NANOCHAT_DTYPES[options.precision]  # read when nanochat is imported
    precision = options.precision
    torch.set_num_threads(1)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        task = build(compose("config", overrides=["name=recipe", *options.ours]).task)
    cache, mirror, length = task.paths.cache_folder, task.paths.mirror, task.model.max_seq_len
    tokenizer = task.tokenizer.prepare(task.data, cache, mirror)
    train, held_out = (tokenise(task.data, split, tokenizer, cache, mirror) for split in ("train", "validation"))
    V = tokenizer.vocab_size

    make: dict[str, Callable[[int, int], Rival]] = {"ours": lambda steps, seed: ours(task, V, steps, seed, precision)}
    for rate in options.rates if options.nanochat else []:
        make[f"nanochat x{rate:g}"] = lambda steps, seed, rate=rate: nanochat(
            task, V, steps, seed, rate, options.warmup
        )
    for rate in options.rates if options.nanogpt else []:
        make[f"nanoGPT x{rate:g}"] = lambda steps, seed, rate=rate: nanogpt(task, V, steps, seed, rate, precision)

    record = Runs(RECORD)
    setting = {"ours": options.ours, "warmup": options.warmup, "model": repr(task.model), "trainer": repr(task.trainer)}

    def loss_of(name: str, steps: int, seed: int) -> float | None:
        """Final validation loss of a run; None where it is left to another process."""
        key = {"rival": name, "steps": steps, "seed": seed, "precision": precision, "compiled": COMPILED or None}
        mine = setting if name == "ours" else {"ours": options.ours, "warmup": options.warmup}
        known = record.find(key | mine)
        if known is not None:
            return float(known["loss"])
        if options.only and name not in options.only:
            return None
        rival, stream = make[name](steps, seed), PackedStream(train, length, task.trainer.batch_size, seed)
        for number in range(steps):
            rival.step(contiguous(next(stream)), number)
            if number % 20 == 19:
                print(f"\r{name}, {steps} steps, seed {seed}: {number + 1}", end="", flush=True, file=sys.stderr)
        loss = validation_loss(rival, held_out, length)
        print(f"\r{name}, {steps} steps, seed {seed}: {math.exp(loss):.2f}", file=sys.stderr)
        record.add(key | mine | {"loss": loss})
        return loss

    for steps in options.steps:
        fewer = round(options.share * steps)
        losses: dict[str, list[float | None]] = {}
        for seed in options.seeds:
            for name in make:
                losses.setdefault(name, []).append(loss_of(name, fewer if name == "ours" else steps, seed))
        rows = []
        for name, found in losses.items():
            both = [(a, b) for a, b in zip(losses["ours"], found, strict=True) if a is not None and b is not None]
            known_losses = [value for value in found if value is not None]
            if known_losses:
                against = "" if name == "ours" or not both else interval([a - b for a, b in both])
                done = fewer if name == "ours" else steps
                rows.append([name, done, len(known_losses), f"{mean(known_losses):.4f}",
                             f"{math.exp(mean(known_losses)):.2f}", against])  # fmt: skip
        print_table(f"{steps} steps of the peers, {fewer} of ours: validation loss",
                    ["", "steps", "seeds", "nats per token", "perplexity", "ours minus this, nats"], rows)  # fmt: skip

    if options.rounds:
        rivals = {name: build_one(100, 0) for name, build_one in make.items() if name == "ours" or name.endswith("x1")}
        batch = contiguous(next(PackedStream(train, length, task.trainer.batch_size, 0)))
        times = interleave({n: lambda r=r: r.step(batch, 50) for n, r in rivals.items()}, options.rounds, warm_up=2)
        print_table("one step, in turns, one thread", ["", "parameters", "of them looked up", "seconds", "ours / this"],
                    [[n, f"{r.parameters:,}", f"{r.tables:,}", f"{times[n]:.3f}", f"{times['ours'] / times[n]:.3f}"]
                     for n, r in rivals.items()])  # fmt: skip


if __name__ == "__main__":
    main()

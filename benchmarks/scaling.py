"""Several processes against one, and against torch's own DistributedDataParallel in a bare loop.

python benchmarks/scaling.py [--rounds 3] [--steps 12] [--overrides model.d_model=256 …]

The default model and text, with AdamW; a process has one thread unless it says otherwise. Ours is the Trainer's own
step, DDP a loop of forward, backward, clipping and the same optimiser on the same rows. Ways are taken in turns, each
in processes of its own; seconds are the median step of a run, and of these the median. Bytes are what each process
hands to the network library in a step, against the least that a sum of all gradients takes (weights in pieces are sent
by torch's own code, which is not counted); waiting is what is left of the sums when the backward pass is over.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import print_table
from hydra import compose, initialize_config_dir
from torch import nn

from modern_llm.config.instantiate import build
from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.tokens import tokenise
from modern_llm.defaults import CONFIG_FOLDER
from modern_llm.models import ModernDecoderLM
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.processes import join, world
from modern_llm.training.callbacks import Callback
from modern_llm.training.runtime import Runtime
from modern_llm.training.trainer import Trainer

WAYS = {  # name: kind, processes, threads of each
    "one process": ("ours", 1, 1),
    "one process, two threads": ("ours", 1, 2),
    "two processes": ("ours", 2, 1),
    "two processes, sharding=optimizer": ("ours optimizer", 2, 1),
    "two processes, sharding=full": ("ours full", 2, 1),
    "two processes, DDP": ("ddp", 2, 1),
    "one process, a bare loop": ("ddp", 1, 1),
}


class Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, step: int, loss: float) -> None:
        self.times.append(time.perf_counter())


class Sent:
    """Bytes of tensors handed to `torch.distributed`."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.bytes = 0
        for name, place in {"all_reduce": 0, "broadcast": 0, "all_gather": 1}.items():
            setattr(dist, name, self._counting(getattr(dist, name), place))

    def _counting(self, call: Any, place: int) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.bytes += arguments[place].numel() * arguments[place].element_size()
            return call(*arguments, **named)

        return counted


def work(kind: str, steps: int, threads: int, overrides: list[str]) -> dict[str, float]:
    """What one process measured."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        settings = ["name=scaling", "trainer/optimizer=adamw", "hardware=cpu", "hardware.precision=fp32",
                    f"hardware.num_threads={threads}", f"trainer.max_steps={steps}", "trainer.save_every=1000",
                    f"hardware.sharding={[*kind.split(), 'none'][1]}", *overrides]  # fmt: skip
        task = build(compose("config", overrides=settings).task)
    places = (task.paths.cache_folder, task.paths.mirror)
    tokenizer = task.tokenizer.prepare(task.data, *places)
    corpus = tokenise(task.data, "train", tokenizer, *places)
    stream = PackedStream(corpus, task.model.max_seq_len, task.trainer.batch_size, 0)
    torch.manual_seed(0)
    model = ModernDecoderLM(task.model.with_vocab_size(tokenizer.vocab_size))
    objective, clock, sent = LanguageModeling(), Clock(), Sent()
    waited: list[float] = []
    if kind == "ddp":
        Runtime(task.hardware)  # the same threads and the same use of memory
        join("cpu")
        net = _Loss(model)
        wrapped = nn.parallel.DistributedDataParallel(net) if world().count > 1 else net
        optimizer = task.trainer.optimizer.build(model)
        for _ in range(steps):
            batch = next(stream)
            share = world().share(task.trainer.batch_size)
            count = objective.count(batch) / world().count  # DDP takes the mean
            (wrapped({name: tensor[share] for name, tensor in batch.items()}) / count).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.on_step(0, 0.0)
    else:
        with tempfile.TemporaryDirectory() as folder:
            loop = Trainer(task.trainer, Runtime(task.hardware), Path(folder), [clock])
            parallel = loop.runtime.parallel
            loop.runtime.parallel = lambda *given: _timed(parallel(*given), waited)  # type: ignore[method-assign]
            loop.checkpoints.save = lambda *given: Path(folder) / "none"  # type: ignore[method-assign]
            loop.fit(model, objective, stream)
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    parameters = sum(p.numel() for p in model.parameters())
    least = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"seconds": median(seconds), "bytes": sent.bytes / steps, "least": least, "parameters": parameters,
            "waited": median(waited) if waited else 0.0,
            "tokens": task.trainer.batch_size * task.model.max_seq_len}  # fmt: skip


class _Loss(nn.Module):
    """The summed loss as what DDP wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, LanguageModeling()

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.objective(self.model, batch).loss_sum


def _timed(parallel: Any, waited: list[float]) -> Any:
    complete = parallel.complete_gradients

    def timed() -> None:
        start = time.perf_counter()
        complete()
        waited.append(time.perf_counter() - start)

    parallel.complete_gradients = timed
    return parallel


def together(kind: str, count: int, threads: int, steps: int, overrides: list[str]) -> dict[str, float]:
    """What the first of so many processes measured."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    command = [sys.executable, __file__, "--work", kind, "--steps", str(steps), "--threads", str(threads),
               "--overrides", *overrides]  # fmt: skip
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count),
                        "OMP_NUM_THREADS": str(threads)}  # fmt: skip
    started = [subprocess.Popen(command, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                                stdout=subprocess.PIPE, text=True) for rank in range(count)]  # fmt: skip
    told = [process.communicate()[0] for process in started]
    return json.loads(told[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--overrides", nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work, options.steps, options.threads, options.overrides)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS if name in options.only}
    for _ in range(options.rounds):
        for name, runs in found.items():
            runs.append(together(*WAYS[name], options.steps, options.overrides))
    first_way = next(iter(found))
    one = median(run["seconds"] for run in found[first_way])
    rows = []
    for name, runs in found.items():
        seconds, first = median(run["seconds"] for run in runs), runs[0]
        spread = f"{min(run['seconds'] for run in runs):.3f} to {max(run['seconds'] for run in runs):.3f}"
        several = WAYS[name][1] > 1 and WAYS[name][0] not in ("ddp", "ours full")
        rows.append([name, f"{first['tokens'] / seconds:,.0f}", f"{seconds:.3f} ({spread})", f"{one / seconds:.2f}",
                     f"{first['bytes'] / first['least']:.2f}" if several else "",
                     f"{median(run['waited'] for run in runs):.3f}" if several else ""])  # fmt: skip
    print_table(f"{found[first_way][0]['parameters']:,.0f} parameters, {options.rounds} rounds",
                ["", "tokens/s", "seconds a step", f"speed over {first_way}", "bytes / least", "seconds waited"],
                rows)  # fmt: skip


if __name__ == "__main__":
    main()

"""One of several processes that train together and count what they hand to `torch.distributed` in a step. As
together.py; the first one writes to a file, for each sharding and optimiser, bytes by kind."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from conftest import random_corpus
from loops import SENDING, model, stream
from together import NORMUON
from torch.utils._python_dispatch import TorchDispatchMode

from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.processes import world
from modern_llm.training.callbacks import Callback
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings
from modern_llm.training.trainer import Trainer

BATCH, MICRO, FROM, TO = 12, 2, 2, 6


class Sent(TorchDispatchMode):
    """Bytes of content in the messages, by kind: of what is gathered the result, of what is scattered the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _, name = func._schema.name.split("::")
        if "c10d" in func.namespace:
            if name == "allreduce_":
                self.bytes["summed"] += _size(args[0])
            elif name == "_reduce_scatter_base_":
                self.bytes["scattered"] += _size(args[1])
            elif name == "_allgather_base_":
                self.bytes["gathered"] += _size(args[0])
            elif name in ("allgather_", "broadcast_"):
                self.bytes["updated"] += _size(args[0])
            elif name == "all_gather_into_tensor":
                self.bytes["updated"] += args[1] * _size(args[0])
        return func(*args, **(kwargs or {}))


def _size(given: Any) -> int:
    if isinstance(given, torch.Tensor):
        return given.numel() * given.element_size()
    return sum(_size(one) for one in given)


class Watch(Callback):
    """What had been handed over at two steps."""

    def __init__(self, sent: Sent) -> None:
        self.sent, self.at = sent, dict[int, Counter[str]]()

    def on_step(self, step: int, loss: float) -> None:
        self.at[step] = Counter(self.sent.bytes)


def main(file: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for sharding in ("none", "optimizer", "full"):
        for kind, optimizer in {"AdamW": AdamW(), "Muon": NORMUON}.items():
            sent = Sent()
            watch = Watch(sent)
            settings = TrainerSettings(max_steps=TO + 1, batch_size=BATCH, save_every=1000, eval_every=1000,
                                       optimizer=optimizer)  # fmt: skip
            hardware = Hardware(device="cpu", precision="fp32", micro_batch_size=MICRO, sharding=sharding)
            with tempfile.TemporaryDirectory() as folder, sent:
                loop = Trainer(settings, Runtime(hardware), Path(folder), [watch])
                loop.checkpoints.save = lambda *given: Path("none")  # type: ignore[method-assign]
                loop.fit(model(**SENDING), LanguageModeling(), stream(random_corpus(3000, 64, seed=0), BATCH))
            found[f"{sharding} {kind}"] = {n: (watch.at[TO][n] - watch.at[FROM][n]) / (TO - FROM) for n in sent.bytes}
    if world().is_first:
        file.write_text(json.dumps(found))

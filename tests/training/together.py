"""One of several processes that train together: every case of `CASES`, its losses, metrics and weights kept by the
first. ranks.py starts them, with the environment of torchrun."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import random_corpus
from loops import Ragged, model, trainer
from made_models import byte_tokenizer
from parts import ALL

from modern_llm.data.batches import LengthBatches
from modern_llm.data.preferences.read import EncodedPair, PairBatch, with_mismatched
from modern_llm.evaluation.metrics.registry import directions
from modern_llm.evaluation.perplexity import perplexity
from modern_llm.models import MoEConfig
from modern_llm.models.attention.sinks import LearnableSinks
from modern_llm.models.feed_forward.kinds import ReLU2
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.objectives.preference import PreferenceOptimisation
from modern_llm.objectives.preference_losses import KTO
from modern_llm.pretrained.loaded import OwnDecoder
from modern_llm.pretrained.settings import LoRA
from modern_llm.processes import agreed, gathered, world
from modern_llm.training.checkpoint import model_tensors
from modern_llm.training.optimization.averages import EMA
from modern_llm.training.optimization.optimizers import AdamW, Muon
from modern_llm.training.optimization.rates import Rates
from modern_llm.training.parallel.shards import whole

STEPS = 8
NORMUON = Muon(lr=0.01, weight_decay=0.1, momentum_start=0.8, polynomial="polar_express", update_scale="spectral",
               variance_decay=0.9, cautious_decay=True, rates=Rates(embeddings=3.0, heads=0.5))  # fmt: skip


class Heldout:
    """Perplexity of other text, which the processes divide."""

    metrics = directions(["validation_loss"])

    def __init__(self) -> None:
        self.corpus = random_corpus(tokens=700, vocab_size=50, seed=7)

    def __call__(self, net: Any) -> dict[str, float]:
        found = perplexity(net, self.corpus, context=16, stride=16, batch_size=3, device=torch.device("cpu"))
        return {"validation_loss": found.loss}


def fitted(folder: Path, dtype: torch.dtype, net: Any, objective: Any, data: Any, sharding: str, **changes: Any) -> Any:
    """The loop over `data`; nothing is saved before the end."""
    settings = {"max_steps": STEPS, "save_every": STEPS, "eval_every": STEPS // 2, "log_every": 1, "batch_size": 8}
    loop = trainer(folder, {"micro_batch_size": 3, "sharding": sharding}, **settings, **changes)
    loop.fit(net.to(dtype), objective, data, Heldout() if isinstance(objective, LanguageModeling) else None)
    return net


def language(folder: Path, dtype: torch.dtype, sharding: str, optimizer: Any, **changes: Any) -> Any:
    """From scratch, rows with very different numbers of targets, dropout and an average of the weights."""
    net = model(dropout=0.1, **changes)
    data = Ragged(random_corpus(tokens=3000, vocab_size=50, seed=0), 16, 8, seed=0)
    more = {"optimizer": optimizer, "average": EMA(decay=0.9), "grad_clip": 0.5}
    return fitted(folder, dtype, net, LanguageModeling(), data, sharding, **more)


def adapters(folder: Path, dtype: torch.dtype, sharding: str) -> Any:
    """Adapters with dropout on a frozen decoder."""
    loaded = OwnDecoder.of(model(vocab_size=257), byte_tokenizer(), "own").with_lora(LoRA(rank=2, alpha=4, dropout=0.2))
    data = Ragged(random_corpus(tokens=3000, vocab_size=50, seed=0), 16, 8, seed=0)
    net = fitted(folder, dtype, loaded.model, LanguageModeling(), data, sharding, optimizer=AdamW(lr=0.01))
    return net


def preferences(folder: Path, dtype: torch.dtype, sharding: str) -> Any:
    """KTO on pairs of many lengths, whose reference point is the whole batch's."""
    ids = torch.randint(1, 50, (24, 30), generator=torch.Generator().manual_seed(3)).tolist()
    pairs = [EncodedPair(i, row[: 3 + i % 5], row[8 : 10 + i % 7], row[18 : 21 + i % 9], (-9.0, -8.0 - i % 3, -30.0))
             for i, row in enumerate(ids)]  # fmt: skip
    pairs = with_mismatched(pairs, 16, seed=0)
    data = LengthBatches(pairs, 8, 0, PairBatch(0), "pairs")
    optimizer = AdamW(lr=0.003)
    return fitted(folder, dtype, model(), PreferenceOptimisation(KTO(0.5)), data, sharding, optimizer=optimizer)


EXPERTS = {"moe": MoEConfig(4, 2, balance_loss_weight=0.1, z_loss_weight=0.01)}
CASES: dict[str, Callable[..., Any]] = {
    "all parts": partial(language, optimizer=NORMUON, use_attention_sinks=True, sinks=LearnableSinks(num_sinks=2),
                         ffn=ReLU2(), **ALL),
    "AdamW": partial(language, optimizer=AdamW(lr=0.003)),
    "experts": partial(language, optimizer=Muon(lr=0.01), **EXPERTS),
    "adapters": adapters,
    "preferences": preferences,
}  # fmt: skip


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # Three and four processes have what they need to differ from one, and no more.
    shardings = {1: ["none"], 2: ["none", "optimizer", "full"], 3: ["none"], 4: ["optimizer", "full"]}[world().count]
    for dtype in (torch.float64, torch.float32) if world().count < 3 else (torch.float64,):
        for sharding in shardings:
            for name, case in CASES.items():
                place = folder / f"{name} {sharding} {dtype}"
                torch.manual_seed(0)
                agreed(lambda place=place: place.mkdir(parents=True))
                net = case(place, dtype, sharding)
                weights = {key: whole(tensor) for key, tensor in model_tensors(net).items()}
                sums = gathered([float(tensor.double().sum()) for tensor in weights.values()])
                assert sums.count(sums[0]) == len(sums), f"{place.name}: processes hold different weights"
                if world().is_first:
                    torch.save(weights, place / "weights.pt")

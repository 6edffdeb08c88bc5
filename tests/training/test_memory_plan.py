"""The memory plan against what a step really keeps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from parts import PARTS

from modern_llm.config.instantiate import build
from modern_llm.models import ModernDecoderLM, ModernLLMConfig, MoEConfig
from modern_llm.models.config import GQAConfig
from modern_llm.models.feed_forward.kinds import ReLU2
from modern_llm.training.memory.plan import activation_bytes_per_token, check_memory, plan_memory
from modern_llm.training.settings import Hardware, TrainerSettings

ROOT = Path(__file__).resolve().parents[2]


def bytes_kept(config: ModernLLMConfig, batch: int, length: int, half: bool) -> int:
    """Bytes that autograd keeps after a forward pass through the blocks, weights and their 16-bit copies left out."""
    torch.manual_seed(0)
    model = ModernDecoderLM(config).train()
    shapes = [p.shape[-2:] for p in model.parameters()]  # of experts, one at a time
    weights = {p.shape for p in model.parameters()} | {*shapes, *(shape[::-1] for shape in shapes)}
    kept: dict[int, tuple[int, Any]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    ids = torch.randint(0, config.vocab_size or 1, (batch, length))
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        held = model.hidden_states(ids)
    assert held is not None
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ffn": ReLU2()},
        {"gqa": GQAConfig(4)},
        {"ffn_hidden_size": 1500},
        {"moe": MoEConfig(4, 2)},
        {"n_heads": 8, "qk_norm": True},
        # The lab's attention and state space keep scores, whose number depends on the length of the text.
        *(settings for name, settings in PARTS.items() if not name.startswith(("linear", "state"))),
    ],
)
def test_activations_are_what_autograd_keeps(changes: dict[str, Any], half: bool) -> None:
    settings = {"vocab_size": 61, "max_seq_len": 128, "d_model": 256, "n_heads": 4, **changes}
    few, many = (ModernLLMConfig(n_layers=n, **settings) for n in (2, 5))
    measured = (bytes_kept(many, 3, 111, half) - bytes_kept(few, 3, 111, half)) / 3 / (3 * 111)
    planned = (5 * activation_bytes_per_token(many, half) - 2 * activation_bytes_per_token(few, half)) / 3
    assert planned == pytest.approx(measured, rel=0.12)


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*overrides, "name=x"])


def test_max_rtx3060_fits_and_is_the_largest_of_its_shape() -> None:
    config = composed("model=max_rtx3060", "task=wikitext2", "hardware=rtx3060")
    task = build(config.task)  # checks the plan itself
    model = task.model.with_vocab_size(task.tokenizer.vocab_size)
    assert plan_memory(model, task.seq_len, task.trainer, task.hardware).total <= 11.5e9
    larger = replace(model, n_layers=model.n_layers + 1)
    with pytest.raises(ValueError, match="memory_limit_gb"):
        check_memory(larger, task.seq_len, task.trainer, task.hardware)


def test_a_plan_that_does_not_fit_says_what_would() -> None:
    model = ModernLLMConfig(vocab_size=8192, d_model=512, n_layers=8, n_heads=8, max_seq_len=1024)
    trainer, hardware = TrainerSettings(batch_size=64), Hardware(memory_limit_gb=3.0)
    with pytest.raises(ValueError, match=r"What fits: hardware\.micro_batch_size=") as refusal:
        check_memory(model, 1024, trainer, hardware)
    size = int(str(refusal.value).split("micro_batch_size=")[1].split()[0].rstrip("."))
    assert check_memory(model, 1024, trainer, replace(hardware, micro_batch_size=size)).total <= 3e9
    with pytest.raises(ValueError, match="memory_limit_gb"):
        check_memory(model, 1024, trainer, replace(hardware, micro_batch_size=size * 2))

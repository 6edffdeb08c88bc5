"""Linear maps in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import make_model
from torch import nn
from torch.nn import functional as F

from modern_llm.experiment.loading import load_model
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.int8 import Int8Linear, hold_in_int8
from modern_llm.pretrained.causal import HuggingFaceCausalLM
from modern_llm.pretrained.settings import FullFinetuning, PretrainedModel
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware


def test_every_weight_is_the_nearest_of_255_numbers_of_its_row() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 40) * torch.logspace(-3, 3, 5)[:, None]
    weight[3] = 0
    held = Int8Linear(weight, None)
    for row, codes in zip(weight, held.codes, strict=True):
        numbers = torch.arange(-127, 128) * (row.abs().max() / 127)
        assert (codes.float() * row.abs().max() / 127 - row).abs().tolist() == pytest.approx(
            (numbers[:, None] - row).abs().amin(0).tolist(), abs=1e-6 * float(row.abs().max())
        )


@pytest.mark.parametrize("rows", [1, 7, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_weights_it_holds(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(rows, 64).to(dtype), torch.randn(48)
    held = Int8Linear(torch.randn(48, 64), bias)
    expected = F.linear(x.double(), held.codes.double() * held.scale[:, None].double(), bias.double())
    out = held(x)
    assert out.dtype == dtype
    # Few rows are multiplied in bf16.
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.2)


def own() -> Any:
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=257, d_model=64, n_layers=2, n_heads=4)).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "own"])
def test_a_model_gives_nearly_the_same_and_its_head_stays(kind: str) -> None:
    net: Any = own() if kind == "own" else HuggingFaceCausalLM(make_model(kind)).eval()
    ids = torch.randint(1, 250, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = net.output_head.logits(net.hidden_states(ids).hidden).log_softmax(-1)
        for block in net.blocks:
            hold_in_int8(block)
        after = net.output_head.logits(net.hidden_states(ids).hidden).log_softmax(-1)
    maps = [m for block in net.blocks for m in block.modules() if isinstance(m, nn.Linear)]
    assert not maps
    assert not torch.equal(before, after)
    assert (F.kl_div(after, before, log_target=True, reduction="none").sum(-1)).mean() < 0.02


@pytest.mark.parametrize("name", ["made/llama", "google-t5/t5-small"])
def test_models_are_loaded_so_where_nothing_is_trained(name: str, hub: Path) -> None:
    runtime = Runtime(Hardware(device="cpu", precision="fp32", int8_weights=True))
    choice = PretrainedModel(name, FullFinetuning())
    frozen = load_model(choice, runtime, str(hub), labels=[], train=False)
    assert any(isinstance(module, Int8Linear) for module in frozen.model.modules())
    trained = load_model(choice, runtime, str(hub), labels=[], train=True)
    assert not any(isinstance(module, Int8Linear) for module in trained.model.modules())
    if name == "google-t5/t5-small":
        ids = torch.randint(1, 250, (2, 9))
        net: Any = frozen.model
        encoded = net.encode(ids, torch.ones_like(ids))
        assert net.decoder_states(encoded, ids).isfinite().all()

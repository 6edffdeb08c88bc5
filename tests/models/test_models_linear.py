"""The decoding product on the CPU against the same product in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from modern_llm.models import kernels
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.linear import Linear, linear


@pytest.fixture(params=["AuthenticAMD", "GenuineIntel"], autouse=True)
def _vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way of multiplying, whatever this machine is."""
    monkeypatch.setattr(kernels, "cpu_vendor", lambda: request.param)


def _problem(rows: tuple[int, ...], inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((*rows, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (3, 1), (8, 1), (2, 4), (9, 1), (13, 1), (0, 1), ()])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 256), (300, 257), (1100, 96), (4, 4), (640, 7400)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_few_rows_give_the_same_product(threads, rows, inputs, outputs, with_bias):
    x, weight, bias = _problem(rows, inputs, outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            got = linear(x, weight, bias if with_bias else None)
    finally:
        torch.set_num_threads(before)
    expected = F.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "vendor", "threads", "kernel"),
    [
        (1, 3072, 576, "GenuineIntel", 1, "plain"),
        (3, 49152, 576, "GenuineIntel", 2, "plain"),
        (4, 49152, 576, "GenuineIntel", 2, "onednn"),
        (8, 3072, 576, "GenuineIntel", 1, "onednn"),
        (8, 3072, 576, "GenuineIntel", 2, "plain"),
        (8, 960, 576, "GenuineIntel", 1, "plain"),
        (13, 49152, 576, "GenuineIntel", 1, "plain"),
        (1, 3072, 576, "AuthenticAMD", 1, "pieces"),
        (8, 3072, 576, "AuthenticAMD", 1, "pieces"),
        (9, 3072, 576, "AuthenticAMD", 1, "plain"),
        (2, 576, 1536, "AuthenticAMD", 1, "pieces"),
        (3, 576, 1536, "AuthenticAMD", 1, "plain"),
        (4, 576, 1536, "AuthenticAMD", 2, "pieces"),
        (1, 3072, 576, "", 1, "plain"),
    ],
)
def test_which_kernel_takes_a_few_rows(rows, outputs, inputs, vendor, threads, kernel):
    assert kernels.few_rows_kernel(rows, outputs, inputs, vendor, threads) == kernel


def test_a_weight_that_is_not_contiguous():
    x, weight, _ = _problem((2,), 300, 256)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight.t().contiguous().t()), x @ weight.T)
        torch.testing.assert_close(linear(x, weight[::2]), x @ weight[::2].T)


def test_gradients_take_the_ordinary_path():
    x, weight, _ = _problem((2, 1), 300, 256)
    layer = Linear(300, 256, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    x.requires_grad_()
    layer(x).square().sum().backward()
    expected = 2 * (x @ weight.T)
    torch.testing.assert_close(x.grad, expected @ weight, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(layer.weight.grad, (expected.mT @ x).sum(0), rtol=1e-4, atol=1e-2)


def test_a_wide_model_decodes_what_its_full_pass_gives():
    """Wide enough for the other kernel in every layer, which the tiny models of the other tests are not."""
    from modern_llm.models import ModernDecoderLM, ModernLLMConfig
    from modern_llm.models.config import MoEConfig

    torch.manual_seed(0)
    for moe in (None, MoEConfig(2, 1)):
        config = ModernLLMConfig(300, 32, 256, 2, 4, qkv_bias=True, moe=moe, init=GPT2Init(0.06))
        model, ids = ModernDecoderLM(config).eval(), torch.randint(300, (2, 12))
        with torch.no_grad():
            cache = model.new_cache(2, 12)
            got = torch.cat([model(ids[:, [i]], cache=cache).logits for i in range(12)], 1)
            torch.testing.assert_close(got, model(ids).logits, atol=1e-4, rtol=1e-4)

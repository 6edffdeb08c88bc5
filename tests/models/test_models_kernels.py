"""The decision on kernels, against a table of what torch's dispatcher chooses, and against a plain softmax."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modern_llm.models.fused_loss import chunk_rows
from modern_llm.models.kernels import (
    AttentionRoute,
    Device,
    additive_mask,
    attention_route,
    computing_as,
    fused_attention,
    padded_vocabulary,
    shares_keys,
    takes_grouped_products,
)
from modern_llm.models.norm import RMSNorm

CPU, SM75, SM86, SM90 = Device("cpu"), Device("cuda", (7, 5)), Device("cuda", (8, 6)), Device("cuda", (9, 0))
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLASH, REPEATED, EFFICIENT = (
    AttentionRoute("flash", False),
    AttentionRoute("efficient", True, 8),
    AttentionRoute("efficient", False, 8),
)


@pytest.mark.parametrize(
    ("device", "dtype", "masked", "grouped", "expected"),
    [
        (CPU, FP32, False, True, FLASH),
        (CPU, FP32, True, True, FLASH),
        (CPU, BF16, True, True, FLASH),
        (SM75, FP16, False, False, EFFICIENT),
        (SM75, FP16, False, True, REPEATED),
        (SM75, FP16, True, True, REPEATED),
        (SM75, FP32, False, True, REPEATED),
        (SM86, BF16, False, False, FLASH),
        (SM86, BF16, False, True, FLASH),
        (SM86, BF16, True, False, EFFICIENT),
        (SM86, BF16, True, True, REPEATED),
        (SM86, FP32, False, True, REPEATED),
        (SM86, FP32, True, True, REPEATED),
        (SM90, BF16, False, True, FLASH),
        (SM90, BF16, True, True, REPEATED),
        (SM90, FP32, False, True, REPEATED),
    ],
)
def test_the_route_of_attention(device, dtype, masked, grouped, expected):
    assert attention_route(masked, grouped, dtype, device) == expected


def test_grouped_heads_never_reach_the_math_kernel_of_a_card():
    for device in (SM75, SM86, SM90, Device("cuda", (12, 0)), Device("cuda")):
        for dtype in (FP16, BF16, FP32):
            for masked in (False, True):
                route = attention_route(masked, True, dtype, device)
                assert route.kernel != "math"
                assert route.repeat_heads or route.kernel == "flash"


@pytest.mark.parametrize("masked", [False, True])
def test_the_cpu_runs_the_kernel_of_the_table(masked):
    """torch names the kernel that it ran."""
    q, k = torch.randn(2, 16, 8, 32), torch.randn(2, 16, 2, 32)
    mask = additive_mask(torch.ones(2, 1, 16, 16).bool().tril(), FP32) if masked else None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        fused_attention(q, k, k, mask, not masked, 0.2)
    ran = {event.key for event in watched.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in ran


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_a_plain_softmax(monkeypatch, repeat, masked):
    """Repeated heads, which a card needs, and grouped ones give the same."""
    route = AttentionRoute("math", repeat, 8)
    monkeypatch.setattr("modern_llm.models.kernels.attention_route", lambda *facts: route)
    random = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 6, 8, generator=random, dtype=torch.float64)
    k, v = (torch.randn(2, 5, 2, 8, generator=random, dtype=torch.float64) for _ in range(2))
    visible = torch.ones(5, 5).bool().tril()
    mask = additive_mask(visible[None, None], torch.float64) if masked else None
    got = fused_attention(q, k, v, mask, not masked, 0.3)
    head_of = torch.arange(6) // 3
    scores = torch.einsum("bthd,bnhd->bhtn", q, k[:, :, head_of]) * 0.3
    chance = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    torch.testing.assert_close(got, torch.einsum("bhtn,bnhd->bthd", chance, v[:, :, head_of]))


@pytest.mark.parametrize("masked", [False, True])
def test_one_token_reads_its_keys_once_for_all_heads_that_share_them(masked):
    """The kernel is given no more key heads than there are, and their query heads as tokens; same numbers."""
    random = torch.Generator().manual_seed(0)
    q = torch.randn(2, 1, 6, 8, generator=random, dtype=torch.float64)
    k, v = (torch.randn(2, 5, 2, 8, generator=random, dtype=torch.float64) for _ in range(2))
    visible = torch.tensor([[False, True, True, True, True], [True] * 5]) if masked else torch.ones(2, 5).bool()
    mask = additive_mask(visible[:, None, None], torch.float64) if masked else None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as watched:
        got = fused_attention(q, k, v, mask, False, 0.3)
    shapes = [event.input_shapes[0] for event in watched.events() or [] if "scaled_dot_product" in event.name]
    assert shapes
    assert all(shape == [2, 2, 3, 8] for shape in shapes)  # (B, Hkv, G, D)
    head_of = torch.arange(6) // 3
    scores = torch.einsum("bthd,bnhd->bhtn", q, k[:, :, head_of]) * 0.3
    chance = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
    torch.testing.assert_close(got, torch.einsum("bhtn,bnhd->bthd", chance, v[:, :, head_of]))


@pytest.mark.parametrize(
    ("rows", "trunks", "tokens", "device", "expected"),
    [
        (64, 1, 100, CPU, True),
        (32, 4, 100, CPU, True),
        (32, 4, 50, CPU, False),
        (2, 1, 500, CPU, False),
        (4, 4, 10**6, CPU, False),
        (64, 1, 100, SM86, False),
        (128, 16, 500, SM86, True),
    ],
)
def test_what_is_long_or_has_many_answers_is_shared(rows, trunks, tokens, device, expected):
    assert shares_keys((rows - trunks) * tokens * 3 * 64, device) is expected


def test_rows_of_a_mask_are_aligned_where_the_kernel_wants_it(monkeypatch):
    visible = torch.rand(2, 1, 3, 13, generator=torch.Generator().manual_seed(0)) > 0.5
    monkeypatch.setattr("modern_llm.models.kernels.attention_route", lambda *facts: REPEATED)
    mask = additive_mask(visible, BF16)
    assert mask.stride()[-2:] == (16, 1)
    assert torch.equal(mask, torch.zeros(visible.shape, dtype=BF16).masked_fill(~visible, -torch.inf))


@pytest.mark.parametrize(
    ("device", "dtype", "widths", "expected"),
    [
        (SM90, BF16, (64, 128), True),
        (Device("cuda", (10, 0)), BF16, (64, 128), True),
        (SM90, BF16, (64, 100), False),
        (SM90, FP16, (64, 128), False),
        (SM86, BF16, (64, 128), False),
        (Device("cuda", (12, 0)), BF16, (64, 128), False),
        (CPU, BF16, (64, 128), False),
    ],
)
@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped_mm")
def test_grouped_products_are_for_the_cards_that_have_the_kernel(device, dtype, widths, expected):
    assert takes_grouped_products(dtype, widths, device) is expected


class _Watch(TorchDispatchMode):
    """Notes the type of the weight, the one vector there is, in every operation that multiplies or norms."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        tensors = [t for t in arguments if isinstance(t, torch.Tensor)]
        if "copy" not in operation.__name__ and len(tensors) > 1:
            self.seen |= {t.dtype for t in tensors if t.dim() == 1}
        return operation(*arguments, **(named or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_device_norms_in_fp32_with_the_whole_weight(device):
    """Meta tensors go the way of a card. What enters is fp32 already, so CUDA's autocast, which norms in fp32, has
    nothing left to cast."""
    with torch.device(device):
        norm, x = RMSNorm(16, 1e-5), torch.empty(2, 3, 16, dtype=BF16)
    with torch.no_grad(), torch.autocast("cpu", BF16), _Watch() as watch:
        out = norm(x)
    assert watch.seen == {FP32}
    assert out.dtype == BF16


def test_both_ways_of_the_norm_agree(monkeypatch):
    random = torch.Generator().manual_seed(0)
    norm = RMSNorm(16, 1e-5)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3, generator=random)
    x = torch.randn(2, 3, 16, generator=random).bfloat16()
    outputs = []
    for fused in (False, True):
        monkeypatch.setattr("modern_llm.models.norm.has_fused_rms_norm", lambda x, fused=fused: fused)
        outputs.append(norm(x))
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    assert torch.equal(*outputs)
    assert torch.equal(outputs[0], exact.bfloat16())


@pytest.mark.parametrize(("gib", "least"), [(12, 256), (80, 2048)])
def test_chunks_of_the_loss_on_a_card_are_whole_tiles_from_its_memory(gib, least):
    weight = torch.zeros(50257, 1)
    with computing_as(Device("cuda", (9, 0), gib * 2**30)):
        rows = chunk_rows(weight, 10**6, BF16)
        assert rows % 128 == 0
        assert least <= rows <= gib * 2**30 / 128 / 6 / 50257 + 128  # bf16 with its fp32 copy beside it
        assert chunk_rows(weight, 200, BF16) == 256
        assert padded_vocabulary(weight, BF16) == 50304
        assert padded_vocabulary(weight, FP32) == 50257


def test_a_cpu_takes_few_chunks_in_16_bit_and_no_padding():
    weight = torch.zeros(50304, 1)
    assert chunk_rows(weight, 2048, BF16) == 1024
    assert chunk_rows(weight, 2048) < 2**24 / 50304
    assert padded_vocabulary(torch.zeros(50257, 1), BF16) == 50257

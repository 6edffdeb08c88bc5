"""Every model on a GPU against itself on the CPU. Needs a GPU that CUDA knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from parts import ALL, PARTS, UNLIKE_LAYERS
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from modern_llm.models import ModernDecoderLM, MoEConfig, fused_loss
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.plan import plan_attention
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.decoding.generation import generate
from modern_llm.models.fused_loss import linear_cross_entropy, linear_token_nll
from modern_llm.models.output_head import OutputHead

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA knows")

WINDOWED: dict[str, dict[str, Any]] = {
    "learnable": {"use_attention_sinks": True, "sinks": LearnableSinks(window=7, num_sinks=3)},
    "learnable, all seen": {"use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=3)},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=7)},
    "streaming": {"use_attention_sinks": True, "sinks": StreamingSinks(window=5, num_sinks=2)},
    "sliding": {"sliding_window": 7},
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"group_size": 2},
    "mqa": {"group_size": 4},
    "experts": {"moe": MoEConfig(4, 2)},
    **WINDOWED,
    **{f"{name}, gqa, experts": settings | {"group_size": 2, "moe": MoEConfig(4, 2)}
       for name, settings in WINDOWED.items()},
    **PARTS,
    "short and long": {"n_layers": 3, "layers": LayerPattern("SL", 4)},
    **UNLIKE_LAYERS,
    "all parts": {"n_layers": 3, "group_size": 2, "use_attention_sinks": True, "sinks": SinkLogits(window=7), **ALL},
}  # fmt: skip
# Kernels of which attention's own softmax is part: what these take keeps no (T, T) matrix for the backward pass.
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def _gradients(model: ModernDecoderLM, ids: Tensor, **more: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    labels = ids.roll(-1, 1)
    loss = model(ids, labels=labels, **more).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    # Copies: a model that moves takes its gradients along.
    return {name: t.detach().cpu().clone() for name, t in {"loss": loss, **gradients}.items()}


@pytest.mark.parametrize("documents", [False, True])
@every_model
def test_loss_and_gradients_are_those_of_the_cpu(tiny, token_ids, settings, documents):
    ids = token_ids(2, 24)
    more = {"document_ids": torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([11, 1, 12])).expand(2, -1)}
    more = more if documents else {}
    model = tiny(**settings).train()
    expected = _gradients(model, ids, **more)
    found = _gradients(model.cuda(), ids.cuda(), **{name: t.cuda() for name, t in more.items()})
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(found[name].cpu(), gradient, atol=2e-4 * float(scale) + 1e-6, rtol=1e-3, msg=name)


@every_model
@torch.no_grad()
def test_decoding_on_the_cache_is_the_whole_pass(tiny, token_ids, settings):
    model, ids = tiny(**settings).cuda(), token_ids(2, 21).cuda()
    cache = model.new_cache(2, 21)
    pieces = [model(piece, cache=cache).logits for piece in ids.split([9, *[1] * 12], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("settings", WINDOWED.values(), ids=WINDOWED)
def test_no_attention_falls_to_the_math_kernel(tiny, token_ids, settings, documents, group_size):
    """torch refuses the call where none of the kernels that are allowed takes it."""
    model, ids = tiny(**settings, group_size=group_size).cuda().train(), token_ids(2, 24).cuda()
    more = {"document_ids": (torch.arange(24) // 10).expand(2, -1).cuda()} if documents else {}
    for precision in (torch.bfloat16, torch.float16, None):
        half = torch.autocast("cuda", precision) if precision else contextlib.nullcontext()
        with sdpa_kernel(FUSED), half:
            loss = model(ids, labels=ids, **more).loss
        with sdpa_kernel(FUSED):
            loss.backward()
        assert loss.isfinite()


@every_model
def test_bf16_is_near_fp32(tiny, token_ids, settings):
    """By as much as bf16's own rounding explains: eight bits of a number, through a few layers."""
    model, ids = tiny(**settings).cuda(), token_ids(4, 24).cuda()
    with torch.no_grad():
        exact = model(ids).logits
        with torch.autocast("cuda", torch.bfloat16):
            half = model(ids).logits
    assert (half - exact).norm() < 0.1 * exact.norm()


def test_a_compiled_block_is_one_graph_and_computes_the_same(tiny, token_ids):
    settings = MODELS["all parts"]
    model, ids = tiny(**settings).cuda().train(), token_ids(2, 24).cuda()
    expected = _gradients(model, ids)
    for block in model.blocks:
        block.compile(fullgraph=True)
    found = _gradients(model, ids)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=1e-3 * scale + 1e-6, rtol=1e-2, msg=name)


FLEXIBLE: dict[str, dict[str, Any]] = {
    **WINDOWED,
    "documents": {},
    "cap": {"attention_softcap": 5.0},
    "cap and window": {"attention_softcap": 5.0, "sliding_window": 40},
}


@pytest.mark.parametrize("tokens", [300, 384])
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("settings", FLEXIBLE.values(), ids=FLEXIBLE)
def test_compiled_flexible_attention_is_the_dense_mask(tiny, token_ids, settings, dynamic, tokens):
    """In bf16: both are as near to fp32 as its eight bits allow."""
    model = tiny(**settings, group_size=2, d_model=128, max_seq_len=400).cuda().train()
    ids = token_ids(2, tokens).cuda()
    more = {"document_ids": (torch.arange(tokens) // 90).expand(2, -1).cuda()}
    exact = _gradients(model, ids, **more)
    with torch.autocast("cuda", torch.bfloat16):
        dense = _gradients(model, ids, **more)
    model.flexible_attention = True
    torch.compiler.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=dynamic)
    with torch._dynamo.config.patch(specialize_float=True), torch.autocast("cuda", torch.bfloat16):
        found = _gradients(model, ids, **more)
    for name, gradient in exact.items():
        assert found[name].isfinite().all(), name
        error, of_dense = ((t[name] - gradient).norm() / gradient.norm() for t in (found, dense))
        assert error < 2 * of_dense + 0.02, name


@torch.no_grad()
def test_blocks_are_planned_without_waiting_for_the_device(tiny, token_ids):
    model = tiny(sliding_window=40, d_model=128, max_seq_len=400).cuda()
    documents = (torch.arange(300) // 90).expand(2, -1).cuda()
    plan_attention(model.config.views[0], model.rotary, 300, None, documents, flexible=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan_attention(model.config.views[0], model.rotary, 300, None, documents, flexible=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("loss_of", [linear_cross_entropy, linear_token_nll])
def test_the_fused_loss_is_that_of_torch(monkeypatch, loss_of, compiled):
    torch.manual_seed(0)
    monkeypatch.setattr(fused_loss, "compiles_passes", lambda x: compiled)
    x, w = torch.randn(700, 64, device="cuda", requires_grad=True), torch.randn(50001, 64, device="cuda") * 0.1
    w.requires_grad_()
    y = torch.randint(50001, (700,), device="cuda")
    loss_of(x, OutputHead(w), y).sum().backward()
    found = x.grad, w.grad
    x.grad = w.grad = None
    torch.nn.functional.cross_entropy(x @ w.T, y, reduction="sum").backward()
    torch.testing.assert_close(found, (x.grad, w.grad), atol=1e-4, rtol=1e-3)


def test_padded_rows_are_continued_as_alone(tiny, token_ids):
    model = tiny(group_size=2).cuda()
    short, long = token_ids(1, 3), token_ids(1, 9)
    ids = torch.cat([torch.nn.functional.pad(short, (6, 0)), long]).cuda()
    mask = (torch.arange(9) >= torch.tensor([[6], [0]])).long().cuda()
    alone = [generate(model, text.cuda(), max_new_tokens=8)[0] for text in (short, long)]
    assert generate(model, ids, mask, max_new_tokens=8) == alone

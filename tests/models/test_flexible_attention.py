"""FlexAttention against the dense mask, and which blocks it visits. Uncompiled, on the CPU, it computes the rule for
every pair; its kernels are compared in test_models_gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch

from modern_llm.models import ModernDecoderLM
from modern_llm.models.attention.flexible import BLOCK, VisibleBlocks
from modern_llm.models.attention.layers import AttentionView, LayerPattern
from modern_llm.models.attention.plan import new_tokens, plan_attention
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.attention.visibility import as_keys, as_queries

T = 140
DOCUMENTS = (torch.arange(T) // 60).expand(2, -1).clone()
PADDING = torch.stack([torch.arange(T) >= 30, torch.arange(T) < 120]).long()
LENGTHS = torch.tensor([[50, 30, 20, 40], [90, 10, 0, 25]])  # of a trunk and its branches
BRANCHES = torch.stack(
    [torch.repeat_interleave(torch.tensor([0, 1, 2, 3, 9]), torch.cat([n, T - n.sum()[None]])) for n in LENGTHS]
)
WINDOW: dict[str, Any] = {"sliding_window": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": WINDOW,
    "window and kept tokens": {"use_attention_sinks": True, "sinks": StreamingSinks(window=20, num_sinks=3)},
    "window and learned sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(window=20, num_sinks=3)},
    "learned sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=3)},
    "sink logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=20)},
    "cap": {"attention_softcap": 5.0},
    "cap and two kinds of layers": {"attention_softcap": 5.0, "n_layers": 2, "layers": LayerPattern("SL", 20)},
}
MARKS: dict[str, dict[str, Tensor]] = {
    "alone": {},
    "documents": {"document_ids": DOCUMENTS},
    "documents and padding": {"document_ids": DOCUMENTS, "attention_mask": PADDING},
    "padding": {"attention_mask": PADDING},
    "branches": {"branch_ids": BRANCHES},
    "branches of known lengths": {"branch_ids": BRANCHES, "branch_lengths": LENGTHS},
}
CASES = [("window and learned sinks", m) for m in MARKS]
CASES += [(s, "documents") for s in SETTINGS if s != "window and learned sinks"]
CASES += [("window", "alone"), ("window and kept tokens", "alone"), ("window and kept tokens", "branches"),
          ("cap", "alone"), ("cap", "branches of known lengths")]  # fmt: skip


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses gradients on a CPU, for which its compiler has no kernel; uncompiled it computes them."""
    monkeypatch.setattr(of_torch, "_validate_device", lambda *tensors: None)


def gradients(model: ModernDecoderLM, ids: Tensor, flexible: bool, marks: dict[str, Tensor]) -> list[Tensor]:
    """Hidden states of real tokens, and gradients of something of them."""
    model.flexible_attention = flexible
    model.zero_grad()
    hidden = model.hidden_states(ids, **marks).hidden
    real = marks.get("attention_mask", torch.ones_like(ids)).bool()
    if "branch_ids" in marks:
        real = real & (marks["branch_ids"] != 9)
    hidden = hidden[real]
    hidden.mul(torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("setting", "marked"), CASES)
def test_outputs_and_gradients_are_those_of_the_dense_mask(
    tiny: Callable[..., ModernDecoderLM], token_ids: Callable[..., Tensor], on_cpu: None, setting: str, marked: str
) -> None:
    model = tiny(**{"group_size": 2, "max_seq_len": T, "n_layers": 1, **SETTINGS[setting]}).double().train()
    ids, marks = token_ids(2, T), MARKS[marked]
    expected = gradients(model, ids, False, marks)
    for found, wanted in zip(gradients(model, ids, True, marks), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


# -- blocks ----------------------------------------------------------------------------------------------------------


def blocks_of(view: AttentionView, tokens: int, **marks: Tensor) -> VisibleBlocks:
    names = ("attention_mask", "document_ids", "branch_ids", "branch_lengths")
    new = new_tokens(torch.device("cpu"), tokens, 0, None, *(marks.get(name) for name in names))
    return VisibleBlocks.of(as_queries(view, new), as_keys(view, new), view.learned_rows)


def chosen(count: Tensor | None, places: Tensor | None) -> Tensor:
    """(B, rows, columns) whether a block is in the list of its row."""
    assert count is not None
    assert places is not None
    listed = torch.arange(places.shape[-1]) < count[..., None]
    return torch.zeros_like(places, dtype=torch.bool).scatter(-1, places.long(), listed)[:, 0]


def spread(blocks: Tensor) -> Tensor:
    """(B, rows * BLOCK, columns * BLOCK) of blocks (B, rows, columns)."""
    return blocks.repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)


def by_hand(view: AttentionView, documents: Tensor, branches: Tensor, positions: Tensor, real: Tensor) -> Tensor:
    """(B, T, S + T) the rule as the papers have it, of rows that are full of such facts (B, T)."""
    distance = positions[:, :, None] - positions[:, None]
    index = torch.arange(documents.shape[1])
    seen = (index <= index[:, None]) & (distance >= 0) & (real[:, :, None] == real[:, None])
    seen = seen & ((documents[:, :, None] == documents[:, None]) | ~real[:, None])
    seen = seen & ((branches[:, None] == 0) | (branches[:, None] == branches[:, :, None]))
    if view.window is not None:
        seen = seen & ((distance < view.window) | (positions < view.kept_tokens)[:, None])
    return torch.nn.functional.pad(seen, (view.learned_rows, 0), value=True)


VIEWS = [AttentionView(None), AttentionView(None, learned_rows=3), AttentionView(150), AttentionView(100, 5),
         AttentionView(1, learned_rows=130)]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("tokens", [700, 768, 40])
def test_a_skipped_block_has_no_visible_pair_and_a_full_one_no_hidden_pair(view: AttentionView, tokens: int) -> None:
    random = torch.Generator().manual_seed(tokens)
    starts = torch.rand(3, tokens, generator=random) < 0.01
    documents = starts.long().cumsum(1)
    real = torch.ones_like(documents).bool()
    real[1, -tokens // 5 :] = False
    zeros = torch.zeros_like(documents)
    given = {"document_ids": documents, "attention_mask": real.long()}
    positions = plan_positions(given, tokens)
    expected = by_hand(view, documents, zeros, positions, real)
    held = blocks_of(view, tokens, **given)
    torch.testing.assert_close(torch.nn.functional.pad(held.pairs(), (view.learned_rows, 0), value=True), expected)
    check_blocks(held, expected)


def test_blocks_of_branches() -> None:
    lengths = torch.tensor([[300, 200, 100], [100, 250, 250]])
    branches = torch.stack([torch.repeat_interleave(torch.arange(3), n) for n in lengths])
    held = blocks_of(AttentionView(None), 600, branch_ids=branches, branch_lengths=lengths)
    expected = by_hand(AttentionView(None), branches * 0, branches, held.query.positions, branches >= 0)
    check_blocks(held, expected)
    without = blocks_of(AttentionView(None), 600, branch_ids=branches)
    torch.testing.assert_close(held.query.positions, without.query.positions)
    visited = chosen(held.blocks.kv_num_blocks, held.blocks.kv_indices)
    assert not visited[1, 4, 1]  # the second branch, and the first
    assert visited[1, 4, 0]  # the trunk


def plan_positions(marks: dict[str, Tensor], tokens: int) -> Tensor:
    return new_tokens(
        torch.device("cpu"), tokens, 0, None, marks["attention_mask"], marks["document_ids"], None
    ).positions


def check_blocks(held: VisibleBlocks, expected: Tensor) -> None:
    mask = held.blocks
    _, queries, keys = expected.shape
    partial = chosen(mask.kv_num_blocks, mask.kv_indices)
    full = chosen(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (partial & full).any()
    rows, columns = (spread(found)[:, :queries, :keys] for found in (partial | full, full))
    assert rows.expand_as(expected)[expected].all()
    assert expected[columns.expand_as(expected)].all()
    beyond = spread(full)[:, :, keys:]
    assert not beyond.any()  # keys that are not there are seen by none
    by_keys = chosen(mask.q_num_blocks, mask.q_indices), chosen(mask.full_q_num_blocks, mask.full_q_indices)
    torch.testing.assert_close(by_keys, (partial.mT, full.mT))
    # The rule that the kernel computes in the blocks that it visits.
    computed = of_torch.create_mask(mask.mask_mod, len(expected), 1, *mask.seq_lengths, "cpu")[:, 0]
    torch.testing.assert_close(computed[:, :queries, :keys], expected)
    assert not computed[:, :, keys:].any()
    assert computed.any(-1).all()


def test_what_is_visited_grows_with_the_window_and_the_documents_alone() -> None:
    tokens = 64 * BLOCK

    def visited(**more: Any) -> int:
        mask = blocks_of(**more).blocks
        counts = (mask.kv_num_blocks, mask.full_kv_num_blocks)
        return sum(int(count.sum()) for count in counts if count is not None)

    assert visited(view=AttentionView(None), tokens=tokens) == 64 * 65 // 2
    assert visited(view=AttentionView(BLOCK), tokens=tokens) == 64 + 63
    assert visited(view=AttentionView(BLOCK, 4), tokens=tokens) == 64 + 63 + 62
    documents = (torch.arange(tokens) // (8 * BLOCK))[None]
    assert visited(view=AttentionView(None), tokens=tokens, document_ids=documents) == 8 * (8 * 9 // 2)


def test_nothing_is_held_for_each_pair_of_tokens() -> None:
    tokens = 64 * BLOCK
    marks = {"document_ids": (torch.arange(tokens) // 999)[None]}
    most: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(found)
            most.extend(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
            return found

    with Sizes():
        blocks_of(AttentionView(500, 4), tokens, **marks)
    assert max(most) < 10 * tokens


def test_a_cache_goes_by_masks_or_none(tiny: Callable[..., ModernDecoderLM], token_ids: Callable[..., Tensor]) -> None:
    model, ids = tiny(**SETTINGS["window and kept tokens"]), token_ids(1, 30)
    with torch.no_grad():
        expected = model(ids).logits
        model.flexible_attention = True
        cache = model.new_cache(1, 30)
        found = [model(piece, cache=cache).logits for piece in ids.split([9, 9, *[1] * 12], dim=1)]
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-4, rtol=1e-4)


def test_plans_without_a_mask_stay_as_they_are(tiny: Callable[..., ModernDecoderLM]) -> None:
    """Flash attention skips half of the work of a causal pass as well."""
    rotary: Rotary = tiny().rotary
    assert plan_attention(AttentionView(None), rotary, 20, flexible=True).causal
    assert plan_attention(AttentionView(8), rotary, 20, flexible=True).blocks is not None
    assert plan_attention(AttentionView(None), rotary, 20, capped=True, flexible=True).blocks is not None
    assert plan_attention(AttentionView(None), rotary, 20, capped=True).causal

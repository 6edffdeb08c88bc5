"""Decoding on the cache against one full forward pass."""

from __future__ import annotations

import pytest
import torch
from parts import ALL, PARTS, UNLIKE_LAYERS
from torch import Tensor

from modern_llm.models import ModernDecoderLM
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import NoRope, YarnRope
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import MoEConfig
from modern_llm.models.feed_forward.kinds import GeGLU, ReLU2

SINKS = {
    "learnable": {"use_attention_sinks": True, "sinks": LearnableSinks(window=7, num_sinks=3)},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=7)},
    "streaming": {"use_attention_sinks": True, "sinks": StreamingSinks(window=5, num_sinks=2)},
}
WINDOWED = SINKS | {"sliding": {"sliding_window": 7}}
YARN = YarnRope(factor=4.0, original_max_seq_len=16)
MODELS = {
    "plain": {},
    "gqa": {"group_size": 2},
    "mqa": {"group_size": 4},
    "moe": {"moe": MoEConfig(4, 2)},
    "geglu": {"ffn": GeGLU()},
    "relu2 experts": {"ffn": ReLU2(), "moe": MoEConfig(4, 2)},
    "yarn": {"rope": YARN},
    "nope": {"rope": NoRope()},
    "norms and biases": {"qk_norm": True, "qkv_bias": True},
    **WINDOWED,
    **{f"{name} gqa yarn": settings | {"group_size": 2, "rope": YARN} for name, settings in WINDOWED.items()},
    **{f"{name} mqa moe": settings | {"group_size": 4, "moe": MoEConfig(3, 1)} for name, settings in WINDOWED.items()},
    **{f"{name} nope": settings | {"rope": NoRope()} for name, settings in WINDOWED.items()},
    **{f"with {name}": settings for name, settings in PARTS.items()},
    "short and long": {"n_layers": 3, "layers": LayerPattern("SL", 4)},
    "some without positions": {"n_layers": 3, "layers": LayerPattern(rotary="RN")},
    **UNLIKE_LAYERS,
    **{
        f"{name} gqa all parts": settings | {"group_size": 2, "n_layers": 3} | ALL
        for name, settings in WINDOWED.items()
    },
}
every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
every_window = pytest.mark.parametrize("settings", WINDOWED.values(), ids=WINDOWED)
TOKENS = 21  # three times the window: the ring evicts twice over


def _in_pieces(model: ModernDecoderLM, ids: Tensor, sizes: list[int], max_tokens: int | None) -> Tensor:
    assert sum(sizes) == ids.shape[1]
    cache = model.new_cache(len(ids), max_tokens)
    return torch.cat([model(piece, cache=cache).logits for piece in ids.split(sizes, dim=1)], dim=1)


@every_model
@pytest.mark.parametrize(
    "sizes",
    [[1] * TOKENS, [TOKENS], [4, 9, 1, 1, 6], [9] + [1] * 12, [1, 1, 1, 18], [6, 6, 6, 3]],
    ids=["one by one", "prefill", "chunks", "prefill and decode", "late chunk", "even chunks"],
)
@torch.no_grad()
def test_cached_logits_equal_the_full_forward(tiny, token_ids, settings, sizes):
    model, ids = tiny(**settings), token_ids(2, TOKENS)
    expected = model(ids).logits
    torch.testing.assert_close(_in_pieces(model, ids, sizes, TOKENS), expected, atol=1e-4, rtol=1e-4)
    if model.config.attention_window is not None:
        torch.testing.assert_close(_in_pieces(model, ids, sizes, None), expected, atol=1e-4, rtol=1e-4)


@every_window
@torch.no_grad()
def test_a_prompt_exactly_as_long_as_the_window(tiny, token_ids, settings):
    model, ids = tiny(**settings), token_ids(2, TOKENS)
    reach = model.config.attention_window + model.config.kept_tokens
    for first in (reach - 1, reach, reach + 1):
        got = _in_pieces(model, ids, [first] + [1] * (TOKENS - first), None)
        torch.testing.assert_close(got, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [s for name, s in MODELS.items() if "streaming" not in name],
    ids=[n for n in MODELS if "streaming" not in n],
)
@torch.no_grad()
def test_left_padded_decoding_equals_each_text_alone(tiny, token_ids, settings):
    """Prompts of 2, 6 and 9 tokens, then 12 more for each: past every window."""
    model, ids = tiny(**settings), token_ids(3, TOKENS)
    starts, prompt = [7, 3, 0], 9
    mask = torch.arange(prompt) >= torch.tensor(starts)[:, None]
    cache = model.new_cache(3, TOKENS)
    logits = [model(ids[:, :prompt], attention_mask=mask.long(), cache=cache).logits]
    logits += [model(ids[:, [i]], cache=cache).logits for i in range(prompt, TOKENS)]
    got = torch.cat(logits, dim=1)
    assert got.isfinite().all()
    for row, start in enumerate(starts):
        alone = model(ids[row : row + 1, start:]).logits[0]
        torch.testing.assert_close(got[row, start:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 20}, {"group_size": 2, "rope": YARN}])
@torch.no_grad()
def test_a_second_turn_may_be_padded(tiny, token_ids, settings):
    """A turn without padding, then one whose first row is shorter, then decoding: the padding never existed."""
    model, ids = tiny(**settings), token_ids(2, 14)
    mask = torch.ones(2, 14).bool()
    mask[0, 6:8] = False
    cache = model.new_cache(2, 14)
    logits = [model(ids[:, :6], cache=cache).logits]
    logits.append(model(ids[:, 6:10], attention_mask=mask[:, 6:10].long(), cache=cache).logits)
    logits += [model(ids[:, [i]], cache=cache).logits for i in range(10, 14)]
    got = torch.cat(logits, dim=1)
    for row in range(2):
        alone = model(ids[row][mask[row]][None]).logits[0]
        torch.testing.assert_close(got[row][mask[row]], alone, atol=1e-4, rtol=1e-4)


@every_window
@pytest.mark.parametrize(("prompt", "mask"), [(6, [0, 0, 1]), (6, [1, 1, 0]), (6, [0]), (0, [0, 1, 0])])
def test_padding_inside_a_text_that_a_ring_holds_is_refused(tiny, token_ids, settings, prompt, mask):
    """It would take the place of tokens that are still inside the window."""
    model, ids = tiny(**settings), token_ids(2, 9)
    cache = model.new_cache(2, None)
    if prompt:
        model(ids[:, :prompt], cache=cache)
    padded = torch.tensor([[1] * len(mask), mask])
    with pytest.raises(ValueError, match="attention_mask"):
        model(ids[:, prompt : prompt + len(mask)], attention_mask=padded, cache=cache)


@torch.no_grad()
def test_left_padded_streaming_sinks_within_the_window(tiny, token_ids):
    model, ids = tiny(use_attention_sinks=True, sinks=StreamingSinks(num_sinks=2)), token_ids(2, 12)
    mask = torch.arange(6) >= torch.tensor([4, 0])[:, None]
    cache = model.new_cache(2, 12)
    logits = [model(ids[:, :6], attention_mask=mask.long(), cache=cache).logits]
    logits += [model(ids[:, [i]], cache=cache).logits for i in range(6, 12)]
    got = torch.cat(logits, dim=1)
    for row, start in enumerate([4, 0]):
        torch.testing.assert_close(got[row, start:], model(ids[[row], start:]).logits[0], atol=1e-4, rtol=1e-4)


def test_padding_where_streaming_sinks_must_evict_is_refused(tiny, token_ids):
    model = tiny(**SINKS["streaming"])
    with pytest.raises(ValueError, match="streaming sinks"):
        model(token_ids(2, 6), attention_mask=torch.ones(2, 6), cache=model.new_cache(2, None))


def test_documents_with_a_cache_are_refused(tiny, token_ids):
    model = tiny()
    with pytest.raises(ValueError, match="document_ids"):
        model(token_ids(1, 6), document_ids=torch.zeros(1, 6).long(), cache=model.new_cache(1, 8))


@pytest.mark.parametrize("sizes", [[6, 3], [8, 1]])
def test_a_full_cache_refuses_more(tiny, token_ids, sizes):
    model = tiny()
    with pytest.raises(ValueError, match="holds 8 tokens and was given 9"):
        _in_pieces(model, token_ids(1, 9), sizes, 8)


def test_an_unbounded_cache_needs_a_window(tiny):
    with pytest.raises(ValueError, match="unbounded stream needs"):
        tiny().new_cache(1, None)


@every_window
@torch.inference_mode()
def test_a_long_stream_stays_bounded_and_right(tiny, token_ids, settings):
    """3,000 tokens: the cache does not grow, nothing overflows, and the last logits are those of a full pass."""
    model, ids = tiny(**settings), token_ids(1, 3000)
    cache = model.new_cache(1, None)

    def held_elements() -> int:
        held = [(*part._keys, *part._values, *part._kept_keys) for part in cache.parts]
        tensors = [t for part in held for t in part if t is not None]
        return sum(t.untyped_storage().nbytes() for t in tensors) + model.rotary.cos.untyped_storage().nbytes()

    model(ids[:, :20], cache=cache)
    before = held_elements()
    last = [model(ids[:, [i]], cache=cache).logits[0, 0] for i in range(20, 3000)]
    assert held_elements() == before
    got = torch.stack(last)
    assert got.isfinite().all()
    # Two layers see twice the window, and the kept tokens.
    torch.testing.assert_close(got[-50:], model(ids).logits[0, -50:], atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_the_cache_takes_the_autocast_dtype(tiny, token_ids):
    model, ids = tiny(), token_ids(2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(2, 12)
        model(ids[:, :8], cache=cache)
        got = model(ids[:, 8:], cache=cache).logits
    assert cache.parts[0]._keys[0].dtype == torch.bfloat16
    expected = model(ids).logits[:, 8:]
    assert (got.float() - expected).abs().mean() < 0.05 * expected.std()

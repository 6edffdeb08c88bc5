"""Texts that go on from a few others, which are held once: what each sees, and what is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modern_llm.models.attention.kv_cache import KVCache
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits
from modern_llm.models.attention.trunks import Trunks
from modern_llm.models.branches.short_convolution import ShortConvolution
from modern_llm.models.decoding.generation import generate, prefilled
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.kernels import Device, additive_mask, attention_with_lse, computing_as

# Of a window, all that is held is seen, because no text is longer.
SHARING: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"group_size": 2},
    "window": {"sliding_window": 30},
    "learned rows": {"use_attention_sinks": True, "sinks": LearnableSinks(window=30, num_sinks=3), "group_size": 4},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=30), "group_size": 2},
    "a part that looks back": {"branches": {"canon": ShortConvolution(width=3)}},
}
OWNERS = [0, 0, 0, 2, 1, 1]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_over(q: Tensor, k: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Chances (B, H, T, n) and log-sum-exp (B, T, H) of q (B, T, H, D) and k (B, n, Hkv, D), scaled by 0.3, of what is
    visible (B, n)."""
    scores = torch.einsum("bthd,bnhd->bhtn", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2)) * 0.3
    scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1).transpose(1, 2)


@pytest.fixture(autouse=True)
def _shared_however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modern_llm.models.kernels._FEWEST_SHARED", 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_comes_with_the_logarithm_of_its_sum(device, masked) -> None:
    q, k, v = random(2, 3, 6, 8), random(2, 5, 2, 8, seed=1), random(2, 5, 2, 8, seed=2)
    visible = torch.tensor([[False, False, True, True, True], [True] * 5]) if masked else torch.ones(2, 5).bool()
    mask = additive_mask(visible[:, None, None], torch.float64) if masked else None
    with computing_as(Device(device)):
        out, lse = attention_with_lse(q, k, v, mask, 0.3)
    chance, expected = softmax_over(q, k, visible)
    torch.testing.assert_close(out, torch.einsum("bhtn,bnhd->bthd", chance, v.repeat_interleave(3, 2)))
    torch.testing.assert_close(lse, expected)


@pytest.mark.parametrize("owners", [[0, 0, 1, 1, 2, 2], OWNERS, [2, 0, 2, 1, 2, 2]])
@pytest.mark.parametrize("rows", [None, [1, 3, 5], [4], [5, 0]])
def test_each_text_sees_its_trunk_and_its_own(owners, rows) -> None:
    """Groups of any sizes in any order, before and after texts have left."""
    trunk_k, trunk_v = random(3, 7, 2, 8, seed=1), random(3, 7, 2, 8, seed=2)
    real = torch.arange(7) >= torch.tensor([[3], [0], [5]])
    trunks = Trunks({4: trunk_k}, {4: trunk_v}, real, owners)
    if rows is not None:
        trunks.keep(rows)
        owners = [owners[row] for row in rows]
    B = len(owners)
    q, k, v = random(B, 1, 6, 8, seed=3), random(B, 4, 2, 8, seed=4), random(B, 4, 2, 8, seed=5)
    own = torch.arange(4) >= (torch.arange(B) % 3)[:, None]
    got = trunks.attend(4, q, k, v, additive_mask(own[:, None, None], torch.float64), 0.3)
    visible = torch.cat([real[owners], own], 1)
    chance, _ = softmax_over(q, torch.cat([trunk_k[owners], k], 1), visible)
    values = torch.cat([trunk_v[owners], v], 1).repeat_interleave(3, 2)
    torch.testing.assert_close(got, torch.einsum("bhtn,bnhd->bthd", chance, values), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("lengths", "joined"), [((7, 4), 7), ((4, 7), 7), ((7, 4), 5), ((4, 4), 4)])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [5, 1, 1, 0]])
def test_texts_on_joined_trunks_see_what_they_saw(lengths, joined, rows) -> None:
    """Trunks of newcomers that are shorter, longer, or as long; one that nobody goes on from any more was the longest.
    Each text against the dense softmax over its own tokens alone."""
    owners, newcomers = [1, 0, 2, 0, 0, 1], [1, 0, 0]
    keys, values, real = [], [], []
    for seed, (count, length) in enumerate(zip((3, 2), lengths, strict=True)):
        keys.append(random(count, length, 2, 8, seed=seed))
        values.append(random(count, length, 2, 8, seed=seed + 10))
        real.append(torch.arange(length) >= torch.arange(count)[:, None] * (length > joined or length == 7))
    if joined == 5:
        real[0] &= torch.arange(7) >= 2
    first = Trunks({4: keys[0]}, {4: values[0]}, real[0], owners)
    second = Trunks({4: keys[1]}, {4: values[1]}, None if lengths[1] == 4 else real[1], newcomers)
    first.keep(rows)
    first.join(second, joined)
    assert first.length == joined
    texts = [(0, owners[row]) for row in rows] + [(1, owner) for owner in newcomers]
    for _ in range(2):  # and once more, when some have left
        B = len(texts)
        q, k, v = random(B, 1, 6, 8, seed=3), random(B, 4, 2, 8, seed=4), random(B, 4, 2, 8, seed=5)
        own = torch.arange(4) >= (torch.arange(B) % 4)[:, None]
        got = first.attend(4, q, k, v, additive_mask(own[:, None, None], torch.float64), 0.3)
        for b, (of, trunk) in enumerate(texts):
            seen = real[of][trunk] if of == 0 or lengths[1] != 4 else torch.ones(4, dtype=torch.bool)
            text_keys = torch.cat([keys[of][trunk][seen], k[b][own[b]]])[None]
            text_values = torch.cat([values[of][trunk][seen], v[b][own[b]]])[None].repeat_interleave(3, 2)
            chance, _ = softmax_over(q[b : b + 1], text_keys, torch.ones(text_keys.shape[:2], dtype=torch.bool))
            expected = torch.einsum("bhtn,bnhd->bthd", chance, text_values)
            torch.testing.assert_close(got[b : b + 1], expected, rtol=1e-12, atol=1e-12)
        left = [0, B - 1, 2]
        texts = [texts[row] for row in left]
        first.keep(left)
        first.join(None, joined)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", SHARING)
@torch.no_grad()
def test_steps_on_a_shared_cache_are_those_of_the_whole_texts(tiny, token_ids, name, padded) -> None:
    model = tiny(max_seq_len=64, **SHARING[name]).double()
    ids, mask = token_ids(3, 9), torch.ones(3, 9, dtype=torch.bool)
    if padded:
        mask[0, :4], mask[2, :1] = False, False
    more = token_ids(len(OWNERS), 6, seed=2)
    cache = model.new_cache(3, 15)
    model.hidden_states(ids, attention_mask=mask if padded else None, cache=cache)
    assert cache.share(OWNERS)
    rows = list(range(len(OWNERS)))
    for step in range(6):
        if step == 3:
            rows = [0, 2, 5]
            cache.keep(torch.tensor(rows))
        got = model.hidden_states(more[rows, step][:, None], cache=cache).hidden[:, -1]
        assert cache.length == 10 + step
        for place, row in enumerate(rows):
            owner = OWNERS[row]
            text = torch.cat([ids[owner][mask[owner]], more[row, : step + 1]])
            torch.testing.assert_close(got[place], model.hidden_states(text[None]).hidden[0, -1], rtol=1e-5, atol=1e-5)


def _bytes(part: KVCache) -> int:
    assert part.trunks is not None
    held = [*part._keys, *part._values, *part.trunks._keys.values(), *part.trunks._values.values()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())


def test_a_trunk_is_held_once_however_many_texts_go_on_from_it(tiny, token_ids) -> None:
    model = tiny(max_seq_len=64)
    cache = model.new_cache(2, 40)
    with torch.no_grad():
        model.hidden_states(token_ids(2, 30), cache=cache)
    assert cache.share([0] * 8 + [1] * 8)
    a_token = 2 * model.config.n_layers * model.config.n_kv_heads * model.config.head_size * 4
    assert sum(map(_bytes, cache.parts)) == (2 * 30 + 16 * 10) * a_token
    cache.keep(torch.tensor([9, 10]))  # the first trunk is left by all
    assert sum(map(_bytes, cache.parts)) == (1 * 30 + 2 * 10) * a_token


@torch.no_grad()
def test_newcomers_hold_their_prompts_once_or_take_one_that_is_held(tiny, token_ids) -> None:
    model = tiny(max_seq_len=64)
    cache, more = model.new_cache(2, 40), model.new_cache(1, 25)
    for held, (rows, tokens) in ((cache, (2, 30)), (more, (1, 15))):
        model.hidden_states(token_ids(rows, tokens), cache=held)
    assert cache.share([0] * 8 + [1] * 8)
    assert more.share([0] * 4)
    model.hidden_states(token_ids(16, 1), cache=cache)
    a_token = 2 * model.config.n_layers * model.config.n_kv_heads * model.config.head_size * 4
    # Four texts stay, two begin anew behind their prompts, and four come with one of their own.
    cache.join(torch.tensor([0, 1, 8, 9, 8, 0]), more, 31, shared=30, forgotten=torch.tensor([0, 0, 0, 0, 1, 1]))
    assert sum(map(_bytes, cache.parts)) == (3 * 30 + 10 * 10) * a_token
    assert cache.length == 31


@pytest.mark.parametrize("settings", [{"sliding_window": 6}, {"attention_softcap": 5.0}])
def test_what_cannot_be_shared_stays_as_it_is(tiny, token_ids, settings) -> None:
    model = tiny(max_seq_len=64, **settings)
    cache = model.new_cache(2, 40)
    with torch.no_grad():
        model.hidden_states(token_ids(2, 30), cache=cache)
    assert not cache.share([0, 0, 1])
    assert all(part.trunks is None for part in cache.parts)


@pytest.mark.parametrize("name", SHARING)
def test_texts_behind_a_prefix_share_it_and_leave_it_as_it_was(tiny, token_ids, name) -> None:
    """Twice from one prefix, as chunks of samples are drawn; against whole prompts."""
    model, ids = tiny(max_seq_len=64, **SHARING[name]), token_ids(1, 9)
    prefix = prefilled(model, ids[0, :-1].tolist())
    assert prefix.shared(2, 4).parts[0].trunks is not None
    options: dict[str, Any] = {"max_new_tokens": 8, "sampling": Sampling(temperature=3.0), "eos_id": 7, "seed": 3}
    expected = generate(model, ids.expand(5, -1), **options)
    for _ in range(2):
        assert generate(model, ids[:, -1:].expand(5, -1), prefix=prefix, **options) == expected
    assert len({tuple(text) for text in expected}) == 5

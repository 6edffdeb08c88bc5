"""The fused output head and loss against plain logits and `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modern_llm.models import ModernDecoderLM, ModernLLMConfig, fused_loss
from modern_llm.models.config import MoEConfig
from modern_llm.models.fused_loss import IGNORE_INDEX, linear_cross_entropy, linear_token_nll, token_nll
from modern_llm.models.output_head import OutputHead

V, D = 40, 12


@contextmanager
def _chunks_of(rows: int, vocabulary: int = V) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_loss, "loss_chunk_elements", lambda weight, held: rows * vocabulary)
        patch.setattr(fused_loss, "pass_elements", lambda weight: 5 * vocabulary)
        yield


def _problem(tokens: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(tokens, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def _assert_agrees(hidden: Tensor, weight: Tensor, targets: Tensor, tolerance: float) -> Tensor:
    """Value and both gradients, with a factor behind the loss as gradient accumulation puts one."""
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=IGNORE_INDEX)
    got = linear_cross_entropy(hidden, OutputHead(weight), targets)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    reference = torch.autograd.grad(0.3 * expected, [hidden, weight])
    for one, other in zip(torch.autograd.grad(0.3 * got, [hidden, weight]), reference, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    return got


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 31, 32, 33, 50])
def test_value_and_gradients_at_chunk_borders(tokens, dtype, tolerance):
    with _chunks_of(16):
        _assert_agrees(*_problem(tokens, dtype), tolerance)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_what_a_gpu_compiles_is_the_loss_and_its_slope(softcap):
    """Against autograd, in the plain lines that the compiler gets."""
    hidden, weight, targets = _problem(20, torch.float32)
    targets[[0, 7]] = IGNORE_INDEX
    logits = (hidden @ weight.T).detach().requires_grad_()
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(capped, targets, reduction="none", ignore_index=IGNORE_INDEX)
    expected.sum().backward()
    likelihood, slope = fused_loss._slope(logits.detach(), targets[:, None], softcap, V)
    torch.testing.assert_close(-likelihood[:, 0], expected)
    torch.testing.assert_close(slope, logits.grad)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("loss_of", [linear_cross_entropy, linear_token_nll])
def test_a_padded_head_gives_the_same(monkeypatch, loss_of, softcap, compiled):
    """As a GPU computes a vocabulary that is no multiple of 64; the compiled lines without the compiler."""
    hidden, weight, targets = _problem(50, torch.float32)
    targets[[0, 40]] = IGNORE_INDEX
    factor = torch.linspace(0.5, 2, 50) if loss_of is linear_token_nll else torch.tensor(0.3)

    def gradients():
        loss = loss_of(hidden, OutputHead(weight, softcap), targets)
        return loss, *torch.autograd.grad((factor * loss).sum(), [hidden, weight])

    with _chunks_of(16):
        expected = gradients()
        monkeypatch.setattr(fused_loss, "padded_vocabulary", lambda weight, dtype: 64)
        monkeypatch.setattr(fused_loss, "compiles_passes", lambda x: compiled)
        monkeypatch.setattr(fused_loss, "_compiled_slope", lambda: fused_loss._slope)
        padded = gradients()
    torch.testing.assert_close(padded, expected)


@pytest.mark.parametrize("ignored", [[0], [16], list(range(16)), list(range(10, 40)), list(range(49))])
def test_ignored_targets(ignored):
    hidden, weight, targets = _problem(50, torch.float64)
    targets[ignored] = IGNORE_INDEX
    with _chunks_of(16):
        _assert_agrees(hidden, weight, targets, 1e-10)


def test_all_targets_ignored():
    hidden, weight, targets = _problem(50, torch.float64)
    with _chunks_of(16):
        loss = linear_cross_entropy(hidden, OutputHead(weight), torch.full_like(targets, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_a_target_outside_the_vocabulary_is_refused():
    hidden, weight, targets = _problem(5, torch.float64)
    for wrong in (-1, V):
        targets[2] = wrong
        with pytest.raises((IndexError, RuntimeError)):
            linear_cross_entropy(hidden, OutputHead(weight), targets)
        with pytest.raises((IndexError, RuntimeError)):
            token_nll(hidden, OutputHead(weight), targets)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_extreme_logits(dtype, tolerance):
    hidden, weight, targets = _problem(50, dtype, scale=100.0)
    with _chunks_of(16):
        loss = _assert_agrees(hidden, weight, targets, tolerance)
    assert loss / 50 > 100  # nats per token: exp() of it would not fit in fp32


def test_leading_dimensions_and_a_frozen_head():
    hidden, weight, targets = _problem(24, torch.float64)
    shaped = linear_cross_entropy(hidden.view(2, 12, D), OutputHead(weight.detach()), targets.view(2, 12))
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(shaped, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in (shaped, expected)))


def test_without_gradients_the_value_is_the_same():
    hidden, weight, targets = _problem(50, torch.float64)
    targets[7] = IGNORE_INDEX
    with torch.no_grad(), _chunks_of(16):
        plain = linear_cross_entropy(hidden, OutputHead(weight), targets)
    torch.testing.assert_close(plain, F.cross_entropy(hidden @ weight.T, targets, reduction="sum").detach())


def test_a_second_backward_is_refused():
    """It works in place; a wrong gradient in silence would be worse than none."""
    hidden, weight, targets = _problem(20, torch.float64)
    loss = linear_cross_entropy(hidden, OutputHead(weight), targets)
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        (2 * loss).backward()


@pytest.mark.parametrize("rows", [16, 1000])
def test_token_nll_is_the_unreduced_cross_entropy(rows):
    hidden, weight, targets = _problem(50, torch.float64)
    targets[[3, 40]] = IGNORE_INDEX
    with _chunks_of(rows):
        got = token_nll(hidden.view(2, 25, D), OutputHead(weight), targets.view(2, 25))
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none", ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(got, expected.view(2, 25).detach(), atol=1e-10, rtol=1e-10)
    assert not got.requires_grad


def test_token_nll_of_nothing():
    assert token_nll(torch.zeros(0, D), OutputHead(torch.zeros(V, D)), torch.zeros(0).long()).shape == (0,)


def test_autocast_stays_within_one_percent():
    hidden, weight, targets = _problem(200, torch.float32)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16), _chunks_of(16):
        got = linear_cross_entropy(hidden, OutputHead(weight), targets)
        nll = token_nll(hidden, OutputHead(weight), targets)
    assert got.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0)
    torch.testing.assert_close(nll.sum(), expected, rtol=0.01, atol=0)
    reference = torch.autograd.grad(expected, [hidden, weight])
    for one, other in zip(torch.autograd.grad(got, [hidden, weight]), reference, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


class _LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns, forward or backward."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("moe", [None, MoEConfig(4, 2)], ids=["dense", "moe"])
def test_the_logits_of_a_batch_never_exist(moe):
    """No tensor of a training step is larger than one chunk of logits or the (V, d) head and its gradient."""
    batch, tokens, vocabulary, width, rows = 4, 64, 5000, 16, 32
    model = ModernDecoderLM(ModernLLMConfig(vocabulary, 64, width, 2, 2, ffn_hidden_size=24, moe=moe))
    ids = torch.randint(vocabulary, (batch, tokens))
    allowed = max(rows, width) * vocabulary
    with _chunks_of(rows, vocabulary), _LargestTensor() as watch:
        model(ids, labels=ids).loss.backward()
    assert rows * vocabulary <= watch.elements <= allowed < batch * tokens * vocabulary
    with _chunks_of(rows, vocabulary), torch.no_grad(), _LargestTensor() as watch:
        model(ids, labels=ids)
    assert watch.elements <= allowed
    with _LargestTensor() as watch:
        F.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten()).backward()
    assert watch.elements >= batch * tokens * vocabulary


def test_the_loss_of_the_model_is_the_mean_over_labelled_tokens(tiny, token_ids):
    model, ids, labels = tiny(tie_embeddings=False), token_ids(2, 20), token_ids(2, 20, seed=2)
    labels[0, :9] = IGNORE_INDEX
    got = model(ids, labels=labels)
    assert got.logits is None
    torch.testing.assert_close(got.loss, F.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten()))
    assert model(ids, labels=torch.full_like(ids, IGNORE_INDEX)).loss == 0


def test_checkpointed_activations_change_no_gradient(tiny, token_ids):
    model, ids = tiny(moe=MoEConfig(4, 2), use_attention_sinks=True).train(), token_ids(2, 20)
    gradients = []
    for on in (False, True):
        model.activation_checkpointing = on
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("trained_head", [True, False])
@pytest.mark.parametrize("tokens", [1, 16, 17, 50])
def test_weighted_targets_against_log_softmax(tokens: int, trained_head: bool) -> None:
    """Value and gradients of a loss in which every target has a weight of its own, negative ones among them."""
    hidden, weight, targets = _problem(tokens, torch.float64)
    weight.requires_grad_(trained_head)
    targets[::5] = IGNORE_INDEX
    factors = torch.randn(tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    picked = (hidden @ weight.T).log_softmax(-1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    expected = -picked.masked_fill(targets == IGNORE_INDEX, 0)
    with _chunks_of(16):
        got = linear_token_nll(hidden, OutputHead(weight), targets)
        torch.testing.assert_close(got, expected)
        inputs = [hidden, weight] if trained_head else [hidden]
        ours = torch.autograd.grad((got * factors).square().sum(), inputs)
    theirs = torch.autograd.grad((expected * factors).square().sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(linear_token_nll(hidden, OutputHead(weight), targets), expected)


@pytest.mark.parametrize(("softcap", "scale"), [(0.5, 1.0), (15.0, 1.0), (15.0, 0.3), (None, 2.5)])
def test_a_soft_cap_and_a_factor_against_plain_lines(softcap: float | None, scale: float) -> None:
    hidden, weight, targets = _problem(50, torch.float64, scale=3.0)
    targets[::7] = IGNORE_INDEX
    head, logits = OutputHead(weight, softcap, scale), scale * hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    torch.testing.assert_close(head.logits(hidden), logits)
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)
    factors = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with _chunks_of(16):
        torch.testing.assert_close(token_nll(hidden, head, targets), losses.detach())
        pairs = [
            (linear_cross_entropy(hidden, head, targets), losses.sum()),
            ((linear_token_nll(hidden, head, targets) * factors).sum(), (losses * factors).sum()),
        ]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs)
            expected = torch.autograd.grad(theirs, [hidden, weight], retain_graph=True)
            for one, other in zip(torch.autograd.grad(ours, [hidden, weight]), expected, strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_huge_cap_changes_nothing(dtype: torch.dtype) -> None:
    hidden, weight, targets = _problem(50, torch.float32)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), _chunks_of(16):
        plain = linear_cross_entropy(hidden, OutputHead(weight), targets)
        capped = linear_cross_entropy(hidden, OutputHead(weight, 1e4), targets)
    torch.testing.assert_close(capped, plain, rtol=1e-4, atol=0)


def test_a_frozen_head_computes_its_logits_once() -> None:
    hidden, weight, targets = _problem(50, torch.float64)
    weight.requires_grad_(False)
    with _chunks_of(16), _ProductCount() as forward:
        loss = linear_token_nll(hidden, OutputHead(weight), targets).sum()
    with _ProductCount() as backward:
        loss.backward()
    assert forward.products == 8  # two a chunk
    assert backward.products == 0


class _ProductCount(TorchDispatchMode):
    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += "mm" in str(func)
        return func(*args, **(kwargs or {}))

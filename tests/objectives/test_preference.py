"""Preference losses against their formulas in float64 and against TRL, and pairs in one row against separate texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.data.preferences.read import EncodedPair, PairBatch, with_mismatched
from modern_llm.models.attention.sinks import LearnableSinks, StreamingSinks
from modern_llm.models.config import GQAConfig, ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.objectives.preference import PreferenceOptimisation, answer_log_probs, measures
from modern_llm.objectives.preference_losses import IPO, KTO, ORPO, HingeDPO, PairLogProbs, SigmoidDPO, SimPO

NAMES = ("chosen", "rejected", "chosen_tokens", "rejected_tokens", "reference_chosen", "reference_rejected")
LOSSES = {
    "dpo": SigmoidDPO(0.3),
    "cdpo": SigmoidDPO(0.3, label_smoothing=0.2),
    "rpo": SigmoidDPO(0.3, chosen_nll=0.7),
    "hinge": HingeDPO(0.05),
    "ipo": IPO(0.4),
    "simpo": SimPO(2.5, gamma=0.7),
    "orpo": ORPO(0.6),
}


def pairs(count: int = 7, dtype: torch.dtype = torch.float64) -> PairLogProbs:
    random = torch.Generator().manual_seed(4)

    def sums() -> Tensor:
        return -30 * torch.rand(count, generator=random, dtype=torch.float64).to(dtype)

    tokens = [torch.randint(1, 20, (count,), generator=random) for _ in range(2)]
    return PairLogProbs(sums().requires_grad_(), sums().requires_grad_(), *tokens, sums(), sums())


def closed_form(name: str, p: dict[str, float]) -> tuple[float, float, float]:
    """Loss of one pair, and its derivatives with respect to both log-probabilities, written out by hand."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    w, r = p["chosen"] - p["reference_chosen"], p["rejected"] - p["reference_rejected"]
    if name in ("dpo", "cdpo", "rpo"):
        beta, e, a = 0.3, 0.2 if name == "cdpo" else 0.0, 0.7 if name == "rpo" else 0.0
        m, n = beta * (w - r), p["chosen_tokens"]
        slope = beta * (-(1 - e) * sigmoid(-m) + e * sigmoid(m))
        loss = -(1 - e) * math.log(sigmoid(m)) - e * math.log(sigmoid(-m)) - a * p["chosen"] / n
        return loss, slope - a / n, -slope
    if name == "hinge":
        m = 0.05 * (w - r)
        slope = -0.05 if m < 1 else 0.0
        return max(0.0, 1 - m), slope, -slope
    if name == "ipo":
        off = w / p["chosen_tokens"] - r / p["rejected_tokens"] - 1 / 0.8
        return off**2, 2 * off / p["chosen_tokens"], -2 * off / p["rejected_tokens"]
    if name == "orpo":
        per_token = [p["chosen"] / p["chosen_tokens"], p["rejected"] / p["rejected_tokens"]]
        good, bad = (math.exp(each) for each in per_token)
        m = math.log(good / (1 - good)) - math.log(bad / (1 - bad))
        pull = 0.6 * sigmoid(-m)  # d log odds / d log p = 1 / (1 - p)
        loss = -per_token[0] - 0.6 * math.log(sigmoid(m))
        return loss, (-1 - pull / (1 - good)) / p["chosen_tokens"], pull / (1 - bad) / p["rejected_tokens"]
    m = 2.5 * (p["chosen"] / p["chosen_tokens"] - p["rejected"] / p["rejected_tokens"]) - 0.7
    slope = -2.5 * sigmoid(-m)
    return -math.log(sigmoid(m)), slope / p["chosen_tokens"], -slope / p["rejected_tokens"]


class TestFormulas:
    @pytest.mark.parametrize("name", LOSSES)
    def test_value_and_gradients(self, name: str) -> None:
        given = pairs()
        losses = LOSSES[name](given)
        slopes = torch.autograd.grad(losses.sum(), [given.chosen, given.rejected])
        for i in range(len(losses)):
            row = {n: getattr(given, n)[i].item() for n in NAMES}
            expected = closed_form(name, row)
            got = (losses[i].item(), slopes[0][i].item(), slopes[1][i].item())
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_the_loss_starts_at_log_two(self) -> None:
        given = pairs(dtype=torch.float32)
        start = PairLogProbs(given.chosen, given.rejected, given.chosen_tokens, given.rejected_tokens,
                             given.chosen.detach(), given.rejected.detach())  # fmt: skip
        for loss in (LOSSES["dpo"], LOSSES["cdpo"]):
            torch.testing.assert_close(loss(start), torch.full((7,), math.log(2)), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("name", LOSSES)
    def test_gradients_are_finite_differences(self, name: str) -> None:
        given = pairs()
        fixed = [getattr(given, n) for n in NAMES[2:]]
        assert torch.autograd.gradcheck(lambda w, r: LOSSES[name](PairLogProbs(w, r, *fixed)),
                                        (given.chosen, given.rejected))  # fmt: skip

    def test_orpo_is_trls_formula(self) -> None:
        """As TRL's `ORPOTrainer.odds_ratio_loss` and `get_batch_loss_metrics` have it, on means over tokens."""
        given = pairs()
        chosen, rejected = given.chosen / given.chosen_tokens, given.rejected / given.rejected_tokens
        log_odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
        expected = -chosen - 0.6 * F.logsigmoid(log_odds)
        torch.testing.assert_close(LOSSES["orpo"](given), expected)

    def test_odds_of_answers_that_are_certain(self) -> None:
        """In single precision, where 1 - exp(log p) keeps no digit; and where an answer's probability rounds to 1."""
        sums = torch.tensor([-3e-8, -1e-6, -1e-3, -2.0, -90.0, 0.0], requires_grad=True)
        ones = torch.ones(6)
        found, _ = ORPO().rewards(PairLogProbs(sums, sums, ones, ones, ones, ones))
        exact = [x - math.log(-math.expm1(x)) for x in (-1.2e-7, -1e-6, -1e-3, -2.0, -90.0, -1.2e-7)]
        assert found.tolist() == pytest.approx(exact, rel=1e-2, abs=1e-6)
        assert found[1:5].tolist() == pytest.approx(exact[1:5], rel=1e-6)
        (slopes,) = torch.autograd.grad(found.sum(), sums)
        assert slopes.isfinite().all()
        assert slopes[1:5].tolist() == pytest.approx(
            [-1 / math.expm1(x) for x in (-1e-6, -1e-3, -2.0, -90.0)], rel=1e-6
        )

    @pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed (pip install modern-llm[bench])")
    @pytest.mark.parametrize(
        ("name", "theirs", "smoothing"),
        [("dpo", "sigmoid", 0.0), ("cdpo", "aot", 0.2), ("hinge", "hinge", 0.0), ("ipo", "ipo", 0.0)],
    )
    def test_trl_gives_the_same(self, name: str, theirs: str, smoothing: float) -> None:
        """Through TRL's own loss method, on one pair at a time: its `aot`, which sorts a batch, is cDPO there."""
        given = pairs()
        for i in range(len(given.chosen)):
            one = PairLogProbs(
                *(getattr(given, n)[i : i + 1].detach().requires_grad_(n in NAMES[:2]) for n in NAMES[:2]),
                *(getattr(given, n)[i : i + 1] for n in NAMES[2:]),
            )
            loss = LOSSES[name](one)
            expected = trl_loss(one, theirs, LOSSES[name].beta, smoothing)
            torch.testing.assert_close(loss[0], expected)
            ours = torch.autograd.grad(loss.sum(), [one.chosen, one.rejected])
            for a, b in zip(ours, torch.autograd.grad(expected, [one.chosen, one.rejected]), strict=True):
                torch.testing.assert_close(a, b)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: SigmoidDPO(0.0), r"task\.loss\.beta=0\.0: must be above 0"),
            (lambda: SigmoidDPO(0.1, 0.5), r"task\.loss\.label_smoothing=0\.5: must lie in \[0, 0\.5\)"),
            (lambda: SimPO(gamma=-1.0), r"task\.loss\.gamma=-1\.0"),
            (lambda: ORPO(-0.1), r"task\.loss\.beta=-0\.1"),
            (lambda: KTO(undesirable_weight=-1.0), r"task\.loss\.undesirable_weight=-1\.0: must not be negative"),
            (lambda: KTO(0.1, 0.0, 0.0), r"task\.loss\.desirable_weight=0\.0: and.*are both 0"),
        ],
    )
    def test_impossible_settings(self, make: Callable[[], Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()


def trl_loss(one: PairLogProbs, kind: str, beta: float, smoothing: float) -> Tensor:
    """What TRL's `DPOTrainer` makes of log-probabilities that a model in its place hands over."""
    from trl import DPOTrainer

    longest = int(max(one.chosen_tokens.max(), one.rejected_tokens.max()))
    mask = torch.zeros(2, longest + 1, dtype=torch.long)  # behind one token of prompt
    log_probs = torch.zeros(2, longest, dtype=torch.float64)
    rows = []
    for row, (total, n) in enumerate(((one.chosen, one.chosen_tokens), (one.rejected, one.rejected_tokens))):
        mask[row, 1 : int(n) + 1] = 1
        rows.append(F.pad((total / n).expand(int(n)), (0, longest - int(n))))
    log_probs = torch.stack(rows)

    def model(**given: Any) -> Any:
        zeros = torch.zeros_like(log_probs)
        top = zeros.bool()
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=top)

    model.training = False  # type: ignore[attr-defined]

    def gathered(x: Any) -> Any:
        return x

    trainer = SimpleNamespace(
        model=model, beta=beta, label_smoothing=smoothing, loss_types=[kind], loss_weights=[1.0], ld_alpha=None,
        f_divergence_type="reverse_kl", precompute_ref_logps=True, use_weighting=False, aux_loss_enabled=False,
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=gathered, gather=gathered),
        _metrics={"train": _Anything(), "eval": _Anything()}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": one.reference_chosen,
        "ref_rejected_logps": one.reference_rejected,
    }
    try:
        return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    except AttributeError as cause:  # TRL's private parts move
        pytest.skip(f"this TRL's loss cannot be called by itself ({cause})")


class _Anything(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


def encoded(count: int = 5, vocab: int = 60) -> list[EncodedPair]:
    random = torch.Generator().manual_seed(1)

    def ids(longest: int) -> list[int]:
        n = int(torch.randint(1, longest, (), generator=random))
        return torch.randint(1, vocab, (n,), generator=random).tolist()

    return [EncodedPair(i, ids(12), ids(9), ids(9)) for i in range(count)]


def separate(model: Any, item: EncodedPair) -> list[Tensor]:
    """Log-probabilities of the answers, each behind a prompt of its own, from plain logits."""
    sums = []
    for answer in (item.chosen_ids, item.rejected_ids):
        ids = torch.tensor([item.prompt_ids + answer])
        hidden = model.hidden_states(ids[:, :-1]).hidden
        log_probs = (hidden @ model.output_head.weight.t()).log_softmax(-1)[0, len(item.prompt_ids) - 1 :]
        sums.append(log_probs.gather(1, torch.tensor(answer)[:, None]).sum())
    return sums


def decoder(**changes: Any) -> ModernDecoderLM:
    torch.manual_seed(2)
    given: dict[str, Any] = {"vocab_size": 60, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
    model = ModernDecoderLM(ModernLLMConfig(**{**given, "gqa": GQAConfig(2), **changes})).double()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    return model.eval()


class TestSharedPrompts:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"sliding_window": 5},
            {"use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=2)},
            {"use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=2, window=6)},
            {"use_attention_sinks": True, "sinks": StreamingSinks(num_sinks=2, window=6)},
        ],
        ids=["plain", "window", "sinks", "sinks-window", "streaming"],
    )
    def test_values_and_gradients_are_those_of_separate_texts(self, changes: dict[str, Any]) -> None:
        model, items = decoder(**changes), encoded()
        together, _ = answer_log_probs(model, PairBatch(0)(items))
        apart = torch.stack([torch.stack(separate(model, item)) for item in items])
        torch.testing.assert_close(together, apart, atol=1e-9, rtol=1e-9)
        weights = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        parameters = [p for p in model.parameters() if p.requires_grad]
        ours = torch.autograd.grad((together * weights).sum(), parameters)
        theirs = torch.autograd.grad((apart * weights).sum(), parameters)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)

    def test_loss_metrics_and_micro_batches(self) -> None:
        model = decoder()
        items = [replace(item, reference=(-20.0 - i, -21.0)) for i, item in enumerate(encoded())]
        objective = PreferenceOptimisation(SigmoidDPO(0.1))
        batch = PairBatch(0)(items)
        assert objective.count(batch) == 5
        assert objective.tokens(batch) == sum(item.length for item in items)
        whole = objective(model, batch)
        sums = torch.stack([torch.stack(separate(model, item)) for item in items])
        ratios = sums - batch["reference_log_probs"]
        torch.testing.assert_close(whole.loss_sum, -F.logsigmoid(0.1 * (ratios[:, 0] - ratios[:, 1])).sum())
        expected = {
            "preference_accuracy": (ratios[:, 0] > ratios[:, 1]).sum(),
            "reward_margin": 0.1 * (ratios[:, 0] - ratios[:, 1]).sum(),
            "chosen_log_prob": sums[:, 0].sum(),
            "rejected_log_prob": sums[:, 1].sum(),
            "kl_estimate": ratios.square().mean(1).sum() / 2,
        }
        for name, value in expected.items():
            torch.testing.assert_close(whole.metrics[name], value.double())
        parts = [objective(model, {k: t[i : i + 1] for k, t in batch.items()}).loss_sum for i in range(5)]
        torch.testing.assert_close(sum(parts), whole.loss_sum)

    def test_a_tie_is_half_right_and_simpo_needs_no_reference(self) -> None:
        given = pairs()
        tied = PairLogProbs(given.chosen, given.chosen, given.chosen_tokens, given.chosen_tokens, *[given.chosen] * 2)
        metrics = {name: values.sum() for name, values in measures(SimPO(), tied).items()}
        assert float(metrics["preference_accuracy"]) == 3.5
        assert "kl_estimate" not in metrics
        output = PreferenceOptimisation(SimPO())(decoder(), PairBatch(0)(encoded()))
        assert output.loss_sum > 0


def trls_kto(sums: Tensor, reference: Tensor, beta: float, desirable: float, undesirable: float) -> Tensor:
    """The mean over all answers as TRL's `KTOTrainer.kto_loss` has it, from (B, 3) log-probabilities."""
    chosen, rejected, other = (sums - reference).unbind(1)
    divergence = other.mean().clamp(min=0).detach()
    chosen_losses = 1 - torch.sigmoid(beta * (chosen - divergence))
    rejected_losses = 1 - torch.sigmoid(beta * (divergence - rejected))
    return torch.cat([desirable * chosen_losses, undesirable * rejected_losses]).mean()


class TestKTO:
    LOSS = KTO(0.3, desirable_weight=1.2, undesirable_weight=0.7)

    def given(self, drift: float) -> tuple[list[EncodedPair], dict[str, Tensor]]:
        """Pairs whose reference has `drift` nats less of every answer than some numbers around the model's."""
        items = with_mismatched(encoded(), 30, seed=0)
        items = [replace(item, reference=(-40.0 - i - drift, -45.0 - drift, -50.0 + 3 * i - drift))
                 for i, item in enumerate(items)]  # fmt: skip
        return items, PairBatch(0)(items)

    @pytest.mark.parametrize("drift", [30.0, -300.0], ids=["above", "at least 0"])
    def test_a_batch_against_trls_formula_on_separate_texts(self, drift: float) -> None:
        model, (items, batch) = decoder(), self.given(drift)
        apart = torch.stack(
            [torch.stack([*separate(model, p), separate(model, replace(p, chosen_ids=p.answers[2]))[0]]) for p in items]
        )
        expected = trls_kto(apart, batch["reference_log_probs"], 0.3, 1.2, 0.7)
        output = PreferenceOptimisation(self.LOSS)(model, batch)
        torch.testing.assert_close(output.loss_sum / 5, expected)
        point = (apart[:, 2] - batch["reference_log_probs"][:, 2]).mean().clamp(min=0)
        assert (point > 0) == (drift > 0)
        torch.testing.assert_close(output.metrics["reference_point"] / 5, point)
        parameters = [p for p in model.parameters() if p.requires_grad]
        ours = torch.autograd.grad(output.loss_sum / 5, parameters)
        for a, b in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
            torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)

    def test_the_reference_point_is_that_of_the_whole_batch(self) -> None:
        model, (_, batch) = decoder(), self.given(30.0)
        objective = PreferenceOptimisation(self.LOSS)
        whole = objective(model, batch)
        parts = [{k: t[i:j] for k, t in batch.items()} for i, j in ((0, 1), (1, 4), (4, 5))]
        known = objective.survey(model, parts)
        assert not known["mismatched_log_ratio"].requires_grad
        cut = [objective(model, part | known) for part in parts]
        torch.testing.assert_close(sum(part.loss_sum for part in cut), whole.loss_sum)
        for name, value in whole.metrics.items():
            torch.testing.assert_close(sum(part.metrics[name] for part in cut), value)
        alone = sum(objective(model, part).loss_sum for part in parts)
        assert (alone - whole.loss_sum).abs() > 1e-3  # parts by themselves have other points

    def test_its_gradient_is_that_with_a_fixed_reference_point(self) -> None:
        """By finite differences along the gradient itself."""
        model, (_, batch) = decoder(), self.given(30.0)
        objective = PreferenceOptimisation(self.LOSS)
        known = objective.survey(model, [batch])
        parameters = [p for p in model.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(objective(model, batch).loss_sum, parameters)
        losses = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter += step * slope
                losses.append(objective(model, batch | known).loss_sum)
        expected = sum(slope.square().sum() for slope in slopes)
        torch.testing.assert_close((losses[0] - losses[1]) / 2e-6, expected, rtol=1e-6, atol=0)

    def test_by_hand(self) -> None:
        tokens, reference = torch.ones(1, 3), torch.tensor([[-4.0, -4.0, -4.0]])
        sums = torch.tensor([[-1.0, -6.0, -3.5]])  # log-ratios 3, -2 and 0.5
        found = KTO(0.5, 2.0, 3.0)(PairLogProbs.of(sums, tokens, reference))
        expected = (2 * (1 - 1 / (1 + math.exp(-1.25))) + 3 * (1 - 1 / (1 + math.exp(-1.25)))) / 2
        assert found.item() == pytest.approx(expected)

    def test_without_a_reference_point(self) -> None:
        with pytest.raises(ValueError, match="KTO needs a reference point"):
            KTO()(pairs())

"""Policy losses against their equations in plain numbers, their gradients, and TRL; groups in one row against separate
texts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.defaults import CONFIG_FOLDER
from modern_llm.files import read_yaml
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.objectives.policy_gradient import PolicyGradient
from modern_llm.objectives.policy_losses import PolicyLoss

LONGEST = 9
REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.2, 0.7, 0.7, -1.0]]  # of two groups
LENGTHS = [3, 5, 1, 9, 2, 2, 7, 4]
CHOICES = ("reinforce", "grpo", "dr_grpo", "dapo", "gspo", "rloo", "rejection")


def choice(name: str, **changes: Any) -> PolicyLoss:
    """As `task/policy_loss` names it."""
    stated = read_yaml(CONFIG_FOLDER / f"task/policy_loss/{name}.yaml")
    return PolicyLoss(**{key: value for key, value in stated.items() if key != "defaults"} | changes)


def numbers(drift: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(8, 9) log-probabilities of policy, drawing policy and reference, and where there are tokens."""
    random = torch.Generator().manual_seed(3)
    old, noise, other = (torch.randn(8, LONGEST, generator=random, dtype=torch.float64) for _ in range(3))
    old = -old.exp()
    real = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    return (old + drift * noise) * real, old * real, (old + 0.2 * other) * real, real


def by_hand(loss: PolicyLoss, policy: Any, old: Any, reference: Any, clip: tuple[float, float]) -> Any:
    """The mean loss, token by token, as the papers write it; on tensors it has gradients."""
    advantages = []
    for rewards in REWARDS:
        mean = sum(rewards) / 4
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 3)
        for i, r in enumerate(rewards):
            others = sum(rewards[:i] + rewards[i + 1 :]) / 3
            advantages.append({"centred": r - mean, "standardised": (r - mean) / (deviation + 1e-4),
                               "leave_one_out": r - others, "reward": r}[loss.advantage])  # fmt: skip
    total, answers = 0.0, []
    for i, A in enumerate(advantages):
        whole = sum(policy[i][t] - old[i][t] for t in range(LENGTHS[i])) / LENGTHS[i]
        tokens = []
        for t in range(LENGTHS[i]):
            change = whole if loss.ratio == "sequence" else policy[i][t] - old[i][t]
            w = change.exp()
            low, high = 1 - clip[0], 1 + clip[1]
            held = torch.tensor(low) if w < low else torch.tensor(high) if w > high else w
            one = -torch.minimum(w * A, held * A)
            d = reference[i][t] - policy[i][t]
            tokens.append(one + loss.beta * (d.exp() - d - 1))
        total = total + sum(tokens)
        answers.append(sum(tokens) / LENGTHS[i])
    if loss.mean == "answers":
        return sum(answers) / 8
    return total / (sum(LENGTHS) if loss.mean == "tokens" else 8 * LONGEST)


def ours(loss: PolicyLoss, policy: Tensor, old: Tensor, reference: Tensor, real: Tensor) -> tuple[Tensor, Any]:
    advantages = torch.tensor([a for rewards in REWARDS for a in loss.advantages(rewards)], dtype=torch.float64)
    total, logged = loss(policy, old, reference if loss.beta else None, None, advantages, real)
    return total / loss.targets(LENGTHS, LONGEST), logged


CLIPS = {"dapo": (0.2, 0.28), "gspo": (0.0003, 0.0004)}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", CHOICES)
def test_each_paper_by_hand(name: str, beta: float) -> None:
    loss, (policy, old, reference, real) = choice(name, beta=beta), numbers()
    mine, theirs = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    value, logged = ours(loss, mine, old, reference, real)
    expected = by_hand(loss, theirs, old, reference, CLIPS.get(name, (0.2, 0.2)))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, mine), torch.autograd.grad(expected, theirs))
    assert (logged["clip_share"] > 0).any()
    if beta:
        d = reference - policy
        mean = ((d.exp() - d - 1) * real).sum(1) / real.sum(1)
        torch.testing.assert_close(logged["kl_estimate"], mean)


def test_on_policy_the_gradient_is_reinforces_whatever_the_ratio() -> None:
    """At ratio 1 nothing is clipped: advantage times the gradient of the log-probability (Williams 1992)."""
    for name in ("reinforce", "dapo"):
        loss, (policy, _, _, real) = choice(name), numbers()
        mine = policy.clone().requires_grad_()
        value, logged = ours(loss, mine, policy.detach(), policy, real)
        (gradient,) = torch.autograd.grad(value, mine)
        advantages = torch.tensor([a for rewards in REWARDS for a in loss.advantages(rewards)], dtype=torch.float64)
        torch.testing.assert_close(gradient, -advantages[:, None] * real / sum(LENGTHS))
        assert float(logged["clip_share"].sum()) == 0


def test_a_teacher_alone_descends_the_reverse_divergence_of_every_next_token() -> None:
    """Over all texts of three tokens out of four: the expected gradient of the sampled loss is that of the divergence
    from the teacher behind every prefix that is drawn, the draw itself left alone."""
    V, L, random = 4, 3, torch.Generator().manual_seed(5)
    # A table of next-token logits behind each prefix, of a policy and of a teacher.
    prefixes = [prefix for t in range(L) for prefix in product(range(V), repeat=t)]
    tables = [torch.randn(len(prefixes), V, generator=random, dtype=torch.float64) for _ in range(2)]
    logits = tables[0].requires_grad_()
    policy, teacher = logits.log_softmax(1), tables[1].log_softmax(1)
    texts = list(product(range(V), repeat=L))
    places = torch.tensor([[prefixes.index(text[:t]) for t in range(L)] for text in texts])
    own, theirs = (table[places, torch.tensor(texts)] for table in (policy, teacher))  # (64, 3)
    loss, weight = choice("distillation", teacher=0.7), own.sum(1).exp().detach()
    expected = torch.zeros(())
    for i in range(len(texts)):
        nothing = torch.zeros(1, dtype=torch.float64)
        real = torch.ones(1, L, dtype=torch.bool)
        row = own[i : i + 1]
        summed, logged = loss(row, row.detach(), None, theirs[i : i + 1], nothing, real)
        torch.testing.assert_close(logged["teacher_kl_estimate"], (row - theirs[i : i + 1]).mean(1).detach())
        expected = expected + weight[i] * summed
    found = torch.autograd.grad(expected, logits, retain_graph=True)[0]
    reached = torch.stack([weight[[t[: len(p)] == p for t in texts]].sum() for p in prefixes])
    exact = (reached * (policy.exp() * (policy - teacher)).sum(1)).sum()
    torch.testing.assert_close(found, 0.7 * torch.autograd.grad(exact, logits)[0])


@pytest.mark.parametrize("name", ["dapo", "grpo"])
def test_a_teacher_adds_to_the_advantages_of_answers(name: str) -> None:
    """By hand, where answers are used again: A of a token is that of its answer plus 0.3 of what the teacher says."""
    loss, (policy, old, teacher, real) = choice(name, teacher=0.3), numbers()
    advantages = torch.tensor([a for rewards in REWARDS for a in loss.advantages(rewards)], dtype=torch.float64)
    value, logged = loss(policy, old, None, teacher, advantages, real)
    total: Any = 0.0
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            A = float(advantages[i]) + 0.3 * float(teacher[i, t] - old[i, t])
            w = math.exp(policy[i, t] - old[i, t])
            one = -min(w * A, min(max(w, 1 - loss.clip_low), 1 + loss.clip_high) * A)
            total += one / (length if name == "grpo" else 1)
    assert float(value) == pytest.approx(total)
    divergence = [float((old - teacher)[i, :length].mean()) for i, length in enumerate(LENGTHS)]
    assert logged["teacher_kl_estimate"].tolist() == pytest.approx(divergence)


TRLS = {
    "grpo": ("grpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "dapo": ("dapo", "token"),
    "gspo": ("grpo", "sequence"),
}


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed (pip install modern-llm[bench])")
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", TRLS)
def test_trl_gives_the_same(name: str, beta: float) -> None:
    loss, (policy, old, reference, real) = choice(name, beta=beta), numbers()
    value, _ = ours(loss, policy, old, reference, real)
    kind, level = TRLS[name]
    torch.testing.assert_close(value, trl_loss(loss, kind, level, policy, old, reference, real))


def trl_loss(
    loss: PolicyLoss, kind: str, level: str, policy: Tensor, old: Tensor, reference: Tensor, real: Tensor
) -> Any:
    """What TRL's `GRPOTrainer` makes of log-probabilities that a model in its place hands over."""
    from trl import GRPOTrainer

    def log_probs(*args: Any, **kwargs: Any) -> Any:
        return policy, torch.zeros_like(policy), None

    def gathered(x: Any, reduction: str = "") -> Any:
        return x

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), beta=loss.beta, loss_type=kind, importance_sampling_level=level,
        epsilon_low=loss.clip_low, epsilon_high=loss.clip_high, max_completion_length=LONGEST, aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=log_probs,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        accelerator=SimpleNamespace(gather=gathered, reduce=gathered, num_processes=1, device=torch.device("cpu")),
    )  # fmt: skip
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if loss.advantage == "standardised":  # as TRL's `_generate_and_score_completions` scales them
        advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
    inputs = {
        "prompt_ids": torch.ones(8, 1, dtype=torch.long), "prompt_mask": torch.ones(8, 1, dtype=torch.long),
        "completion_ids": torch.ones(8, LONGEST, dtype=torch.long), "completion_mask": real.long(),
        "advantages": advantages.flatten(), "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": real.sum(),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


# -- on a model --------------------------------------------------------------------------------------------------------


def group_batch(prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]], loss: PolicyLoss) -> Any:
    from modern_llm.data.batches import branched

    items = [
        SimpleNamespace(index=i, prompt_ids=p, answers=a) for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
    batch = branched(items, 0)
    random = torch.Generator().manual_seed(1)
    shape = batch["labels"].shape
    batch["advantages"] = torch.randn(shape[:2], generator=random, dtype=torch.float64)
    batch["drawn_log_probs"] = -torch.rand(shape, generator=random)
    batch["counted"] = torch.tensor([loss.targets([len(a) for a in group], 9) for group in answers])
    batch["facts"] = torch.tensor([[0.25, 7.0]] * len(items), dtype=torch.float64)
    return batch


PROMPTS = [[5, 9, 3], [7, 2], [1, 4, 4, 8, 6]]
ANSWERS = [[[3, 4], [9, 9, 1, 2, 0]], [[2], [6, 5, 0]], [[8, 1, 0], [8, 0]]]


@pytest.fixture(scope="module")
def model() -> ModernDecoderLM:
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=12, d_model=32, n_layers=2, n_heads=2, max_seq_len=64)).double()


@pytest.mark.parametrize("name", ["dapo", "grpo", "dr_grpo"])
def test_groups_in_one_row_are_separate_texts_and_cutting_a_batch_changes_nothing(model, name: str) -> None:
    loss = choice(name)
    batch, objective = group_batch(PROMPTS, ANSWERS, loss), PolicyGradient(loss, ("some", "thing"))
    divisor = objective.count(batch)
    flat = [(p, a, float(batch["advantages"][i, j])) for i, (p, group) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
            for j, a in enumerate(group)]  # fmt: skip

    def gradients(make: Callable[[], Tensor]) -> list[Tensor]:
        model.zero_grad()
        make().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def apart() -> Tensor:
        total: Any = 0.0
        for prompt, answer, advantage in flat:
            logits = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
            nll = F.cross_entropy(logits, torch.tensor(answer), reduction="none")
            weight = 1 / len(answer) if name == "grpo" else 1.0
            total = total + advantage * weight * nll.sum()
        return total / {"dapo": 16, "grpo": 6, "dr_grpo": 6 * 9}[name]

    def whole() -> Tensor:
        output = objective(model, batch)
        assert {k: float(v) for k, v in output.means(divisor, 3).items() if k in ("some", "thing")} == {
            "some": 0.25, "thing": 7.0,
        }  # fmt: skip
        return output.loss(divisor, 3)

    def cut() -> Tensor:
        parts = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(3)]
        return sum((objective(model, part).loss(divisor, 3) for part in parts), torch.zeros(()))

    expected = gradients(apart)
    for way in (whole, cut):
        torch.testing.assert_close(gradients(way), expected, rtol=1e-9, atol=1e-12)


def test_the_gap_is_that_of_the_log_probabilities(model) -> None:
    loss = choice("dapo")
    batch, objective = group_batch(PROMPTS, ANSWERS, loss), PolicyGradient(loss)
    gaps = []
    for i, (prompt, group) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        each = []
        for j, answer in enumerate(group):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
            known = logits.log_softmax(-1)[range(len(answer)), answer]
            each += (known - batch["drawn_log_probs"][i, j, : len(answer)]).abs().tolist()
        gaps.append(sum(each) / len(each))
    found = objective(model, batch).means(objective.count(batch), 3)["log_prob_gap"]
    assert float(found) == pytest.approx(sum(gaps) / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 0.0}, "task.policy_loss.clip_low=0.0"),
        ({"clip_high": 0.0}, "task.policy_loss.clip_high=0.0"),
        ({"beta": -0.1}, "task.policy_loss.beta=-0.1"),
        ({"teacher": -1.0}, "task.policy_loss.teacher=-1.0"),
        ({"advantage": "none"}, "task.policy_loss.advantage='none': leaves nothing to learn from without a teacher"),
        ({"teacher": 1.0, "ratio": "sequence"}, "task.policy_loss.ratio='sequence': weighs whole answers"),
    ],
)
def test_impossible_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLoss(**settings)  # type: ignore[arg-type]


def test_equal_rewards_have_no_advantages() -> None:
    for name in CHOICES[:-1]:
        loss = choice(name)
        assert loss.advantages([0.1] * 3) == [0.0] * 3
        assert not loss.teaches([0.0] * 3)
        assert loss.teaches([0.0, 0.1])
    assert choice("distillation").advantages([0.1, 0.7]) == [0.0, 0.0]
    assert choice("distillation").teaches([0.0, 0.0])

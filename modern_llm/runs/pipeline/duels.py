"""Which of two policies answers better: in the opinion of what DPO taught, and in that of a judge that taught neither.

Answers are compared prompt by prompt. A win counts 1, a draw 1/2, and equal answers are a draw whatever a judge says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.experiment.contract import progress_of, say
from modern_llm.reinforcement.rewards import JudgeReward, Reward, WeightedSum
from modern_llm.tasks.dpo import DPO

if TYPE_CHECKING:
    import numpy as np

    from modern_llm.data.chat import Message
    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.evaluation.rewards import AnswerRewards
    from modern_llm.evaluation.verifier import AnswerVerifier
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.runtime import Runtime


def unknown_prompts(
    dpo: DPO, limit: int | None, known: frozenset[str], mirror: str | None, seed: int
) -> dict[int, list[Message]]:
    """Index of each held-out pair whose prompt the judge does not know -> what stands in front of its answers.

    Args:
        dpo: whose pairs.
        limit, mirror, seed: as in `preference_rows`.
        known: `problem_id` of the prompts that the judge knows.
    """
    from modern_llm.data.preferences.read import preference_rows, prompt_of
    from modern_llm.data.solutions.settings import problem_id

    rows, found = preference_rows(dpo.data, "evaluation", mirror, limit, seed), {}
    for index, row in zip(rows.indices, rows.rows, strict=True):
        prompt = prompt_of(dpo.data, row, index)
        if prompt is not None and problem_id(prompt[-1]["content"]) not in known:
            found[index] = prompt
    return found


def answers_to_pairs(
    loaded: LoadedModel,
    pairs: Sequence[EncodedPair],
    asked: Mapping[int, list[Message]],
    count: int,
    max_new_tokens: int,
    runtime: Runtime,
) -> dict[str, Any]:
    """A policy's most likely answers to the prompts of pairs: `conversations`, `texts`, and as ids `prompts` and
    `answers`.

    Args:
        loaded: the policy, with a chat template.
        pairs: whose prompts are answered.
        asked: index of a pair -> its conversation; others are left out.
        count: prompts at most.
        max_new_tokens: of an answer; prompts that do not fit into the context beside it are left out.
        runtime: the machine.
    """
    from modern_llm.evaluation.answering import write_answers

    room = None if loaded.context is None else loaded.context - max_new_tokens
    taken = [p for p in pairs if p.index in asked and (room is None or len(p.prompt_ids) <= room)][:count]
    written = write_answers(
        loaded.decoder,
        loaded.tokenizer,
        [pair.prompt_ids for pair in taken],
        max_new_tokens=max_new_tokens,
        batch_size=runtime.hardware.eval_rows,
        progress=progress_of("answers to held-out prompts"),
    )
    end = [loaded.tokenizer.eos_id]
    return {
        "conversations": [asked[pair.index] for pair in taken],
        "texts": [answer.text for answer in written],
        "prompts": [pair.prompt_ids for pair in taken],
        "answers": [loaded.tokenizer.encode(w.text) + (end if w.ended else []) or end for w in written],
    }


def implicit_wins(
    answered: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, str],
    load: Callable[[str], LoadedModel],
    runtime: Runtime,
    seed: int,
) -> dict[str, dict[str, float]]:
    """`win_rate` of every policy's answers over those of the policy before it, by the implicit reward of DPO against
    its reference (Rafailov et al. 2023, arXiv 2305.18290, eq. 5).

    Args:
        answered: policy -> what `answers_to_pairs` gave, of all the same prompts.
        before: policy -> the one that it was trained from.
        load: gives the model of a policy.
        runtime: the machine.
        seed: of the intervals.
    """
    import numpy as np

    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.evaluation.pairs import pair_log_probs

    duels = {}
    for after, first in before.items():
        both = answered[after]["answers"], answered[first]["answers"]
        duels[after] = [EncodedPair(i, *of) for i, of in enumerate(zip(answered[after]["prompts"], *both, strict=True))]
    every = [pair for pairs in duels.values() for pair in pairs]
    log_probs = []
    for judge in ("dpo", before["dpo"]):
        say(f"judging answers: log-probabilities of {judge}")
        loaded = load(judge)
        with runtime.autocast():
            log_probs.append(pair_log_probs(loaded.decoder, every, runtime.hardware.eval_rows, runtime.device))
    rewards = dict(zip(duels, np.split(log_probs[0] - log_probs[1], len(duels)), strict=True))
    found = {}
    for after, pairs in duels.items():
        same = [pair.chosen_ids == pair.rejected_ids for pair in pairs]
        found[after] = win_rate("win_rate", rewards[after][:, 0], rewards[after][:, 1], same, seed)
    return found


def judged_wins(
    answered: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, str],
    judge: AnswerVerifier | AnswerRewards,
    rows: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """By a judge: `judged_win_rate` of every policy's answers over those of the policy before it, and
    `judged_win_rate_over_<first>` over those of the first policy that was taught to answer: `sft`, or else `base`.

    Args:
        answered: policy -> `conversations` and `texts`, of all the same prompts.
        before: policy -> the one that it was trained from.
        judge: which.
        rows: texts per forward pass.
        seed: of the intervals.
    """
    policies = list(answered)
    asked = [turns for policy in policies for turns in answered[policy]["conversations"]]
    texts = {policy: answered[policy]["texts"] for policy in policies}
    every = [text for policy in policies for text in texts[policy]]
    found = judge.score_conversations(asked, every, rows, progress_of("judging answers"))
    if judge.truncated:
        say(f"{judge.truncated} answers are judged without the beginning of their prompt, to fit")
    count = len(texts[policies[0]])
    scores = {policy: found[i * count : (i + 1) * count] for i, policy in enumerate(policies)}

    def wins(name: str, ours: str, theirs: str) -> dict[str, float]:
        same = [a == b for a, b in zip(texts[ours], texts[theirs], strict=True)]
        return win_rate(name, scores[ours], scores[theirs], same, seed)

    first = "sft" if "sft" in answered else policies[0]
    rates: dict[str, dict[str, float]] = {}
    for policy in policies:
        rates[policy] = wins("judged_win_rate", policy, before[policy]) if policy in before else {}
        if policies.index(policy) > policies.index(first):
            rates[policy] |= wins(f"judged_win_rate_over_{first}", policy, first)
    return rates


def win_rate(name: str, ours: np.ndarray, theirs: np.ndarray, same: Sequence[bool], seed: int) -> dict[str, float]:
    """Share of N duels that are won, a draw counted as a half, with the bounds of its 95 % bootstrap interval.

    Args:
        name: of the figure.
        ours, theirs: (N,) scores.
        same: whether both answers are one, so that rounding decides nothing.
        seed: of the interval.
    """
    import numpy as np

    from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval

    wins = np.where(np.array(same), 0.5, (ours > theirs) + 0.5 * (ours == theirs))
    low, high = bootstrap_interval(wins, seed=seed)
    return {name: float(wins.mean()), f"{name}_low": low, f"{name}_high": high}


# -- what the judge has to do with the policies ----------------------------------------------------------------------


def dependence(judge: str, known: frozenset[str], dpo: DPO | None, reward: Reward | None) -> list[str]:
    """What makes a judge's opinion less than independent of the policies, in sentences; empty: nothing that is known.

    Args:
        judge: folder of its run.
        known: `problem_id` of the prompts that it was trained or chosen on.
        dpo: what trains a policy on preferences.
        reward: what a policy learns from.
    """
    from modern_llm.data.preferences.read import prompt_ids

    found = []
    if dpo is not None:
        trained = prompt_ids(dpo.data, ["train"], dpo.paths.mirror, dpo.limits, dpo.seed)
        if shared := len(trained & known):
            found.append(
                f"{shared} of the {len(trained)} prompts that DPO learns from are known to the judge, which may share "
                "its errors. Deal them to folds (task.data.folds, task.data.fold of both), or choose another judge "
                "(task.measures.judge)."
            )
    if Path(judge).expanduser().resolve() in _rewarding(reward):
        found.append(
            "RL is rewarded by the judge itself, whose win rates it therefore raises whatever its answers are worth. "
            "Choose another judge (task.measures.judge)."
        )
    return found


def _rewarding(reward: Reward | None) -> set[Path]:
    """Folders of the trained judges that a reward asks."""
    if isinstance(reward, WeightedSum):
        return {path for one in reward.rewards.values() for path in _rewarding(one)}
    return {Path(reward.path).expanduser().resolve()} if isinstance(reward, JudgeReward) else set()
